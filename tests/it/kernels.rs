//! Every kernel, compiled as C++ and run on the CPU, against its definition in f64.
//!
//! This shows that a kernel computes the right numbers, reaches no memory it should not, and does
//! not lean on a barrier that is missing. It says nothing about speed, nor about what only a GPU
//! does: there, `tools/gpu-check` has the word.

mod attention;
mod delta;
mod device;
mod rope;
mod rows;
mod sample;
mod step;
