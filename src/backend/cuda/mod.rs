//! NVIDIA cards, through the driver alone: nothing of CUDA is needed to build.

pub mod args;
