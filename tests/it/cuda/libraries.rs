//! Which libraries are taken, and what is asked of them.

use super::card::{Card, build_libraries, is_real, libraries, limits};
use super::serve::{refusal_of, serve};
use crate::harness::{Golden, logits};
use crate::process::Server;
use tessera::engine::Gpu;
use tessera::recipe::Recipe;

#[test]
fn beside_a_driver_of_cuda_12_its_libraries_are_taken_and_not_those_of_13() {
    if is_real() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(libraries().join("libcuda.so"), folder.path().join("libcuda.so")).unwrap();
    let old = [("DRIVER", "12040")];
    let command = || {
        let mut command = serve(&["--device", "cuda"], &old);
        command.env("LD_LIBRARY_PATH", folder.path());
        command
    };
    // Those of 13 would not run.
    build_libraries(folder.path(), 13);
    let (code, error) = refusal_of(&mut command());
    let why = "NVRTC (libnvrtc.so.12) is not found beside a driver for CUDA 12.4";
    assert!(code == Some(2) && error.contains(why), "{code:?} {error}");
    build_libraries(folder.path(), 12);
    let server = Server::start_command(command());
    assert!(server.report.iter().any(|line| line.starts_with("device: cuda:0")));
}

#[test]
fn products_are_split_over_k_only_where_parts_are_summed_in_f32() {
    if is_real() {
        return;
    }
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], None);
    let Gpu { backend, model, .. } = card.open(&golden, limits(4, 1), 4);
    logits(&golden, &backend, &model, &[], &[(Recipe::base(), vec![1, 2, 3])]);
    // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; INPLACE (1) and OUTPUT_TYPE (4) sum in y's width.
    assert_eq!(card.get("reduction_schemes"), 2);
}
