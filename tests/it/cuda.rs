//! The CUDA backend as a whole, on emulated cards: kernels run as C++ (see `kernels`), behind a
//! driver, NVRTC and cuBLASLt of our own making. `TESSERA_CUDA=1` takes the machine's GPU instead.
//!
//! This shows that the host's code asks for the right work in the right order, and that every error
//! ends where it should. How fast any of it is, only a GPU can say.

pub mod card;
mod engine;
mod faults;
mod libraries;
mod memory;
mod serve;
mod steps;
