//! The CPU: the oracle every other device is checked against.

mod attention;
mod columns;
mod device;
mod fold;
mod kv;
mod lowrank;
mod matmul;
mod matrix;
mod rows;
mod sample;
pub mod simd;
mod slots;
mod threads;
mod weight;

pub use self::kv::Kv;
pub use self::matrix::Matrix;
pub use self::slots::{Slots, Step};
pub use self::threads::Cpu;
pub use self::weight::Weight;
