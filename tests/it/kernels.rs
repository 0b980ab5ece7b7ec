//! Every kernel, compiled as C++ and run on the CPU, against its definition in f64. With
//! `TESSERA_CUDA=1` NVRTC compiles it and the machine's GPU runs it, in the same tests.
//!
//! The emulated run shows that a kernel computes the right numbers, reaches no memory it should
//! not, and does not lean on a barrier that is missing. That NVRTC and a GPU agree, only the other
//! one shows. Neither says anything about speed.

mod attention;
mod delta;
mod device;
mod emulated;
mod fold;
mod gather;
mod gpu;
mod rope;
mod rows;
pub mod sample;
mod step;
mod table;
mod world;

use std::process::Command;

use crate::cuda::card::{is_real, libraries};

#[test]
fn kernel_tests_reach_a_card_through_the_driver() {
    if is_real() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "kernels::device::",
        "kernels::delta::nothing_is_written_when_the_work_list_is_empty",
        "kernels::rows::add_adds_in_place",
    ]);
    command.env("TESSERA_CUDA", "1").env("LD_LIBRARY_PATH", libraries());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    assert!(output.status.success(), "{}", text.concat());
    assert!(!text[0].contains("running 0 tests"), "{}", text.concat());
}
