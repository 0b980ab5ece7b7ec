//! What stands at the path is not two readable files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::{Case, bytes, config, disk};
use crate::files::{Draft, with_header};
use crate::harness::golden_dir;

const MODEL: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

fn good(dir: &Path) -> Draft {
    let draft = Draft::golden("llama", "lora_qv");
    draft.write(dir);
    draft
}

/// A tensor file whose header names one F32 tensor of 2 × 2 at these offsets.
fn one_tensor(offsets: &str, data_bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"t":{{"dtype":"F32","shape":[2,2],"data_offsets":{offsets}}}}}"#);
    with_header(header.as_bytes(), data_bytes)
}

pub fn cases() -> Vec<Case> {
    [headers(), truncations(), files()].into_iter().flatten().collect()
}

fn headers() -> Vec<Case> {
    let entry = |fields: &str| format!(r#"{{"t":{{{fields}}}}}"#).into_bytes();
    let shape = r#""shape":[2,2],"data_offsets":[0,16]"#;
    let unknown = entry(&format!(r#""dtype":"F5",{shape}"#));
    let twice = format!(r#"{{"t":{{"dtype":"F32",{shape}}},"t":{{"dtype":"F32",{shape}}}}}"#);
    let overlap = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "u":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let gap = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "u":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}"#;
    let huge = entry(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]"#);
    let metadata = format!(r#"{{"__metadata__":{{"n":1}},"t":{{"dtype":"F32",{shape}}}}}"#);
    vec![
        bytes("no bytes at all", &[MODEL, "is 0 bytes"], |_| Vec::new()),
        bytes("a header length and no header", &[MODEL, "header of 112 bytes"], |_| {
            112u64.to_le_bytes().to_vec()
        }),
        bytes("a header of no bytes", &[MODEL, "JSON"], |mut b| {
            b[..8].fill(0);
            b
        }),
        bytes("a header longer than the file", &["header of 4000000 bytes"], |mut b| {
            b[..8].copy_from_slice(&4_000_000u64.to_le_bytes());
            b
        }),
        bytes("a header of 2^63 bytes", &["header of 9223372036854775808 bytes"], |mut b| {
            b[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
            b
        }),
        bytes("a header of 2^64 - 1 bytes", &["header of 18446744073709551615"], |mut b| {
            b[..8].fill(255);
            b
        }),
        bytes("a header that is not JSON", &[MODEL, "JSON"], |_| {
            with_header(b"{this is not it}", 16)
        }),
        bytes("a header that is not UTF-8", &[MODEL, "UTF-8 from byte 2"], |_| {
            with_header(b"{\"\xff\":{}}", 16)
        }),
        bytes("a header that is a list", &[MODEL, "an object"], |_| with_header(b"[1, 2]", 16)),
        bytes("a header nested too deep", &[MODEL, "recursion"], |_| {
            with_header(format!("{{\"t\":{}", "[".repeat(5000)).as_bytes(), 16)
        }),
        bytes("a header with no tensors", &["holds no tensors"], |_| with_header(b"{}", 0)),
        bytes("a tensor twice in the header", &["'t' is there twice"], move |_| {
            with_header(twice.as_bytes(), 16)
        }),
        bytes("tensors that do not follow each other: overlap", &[MODEL, "`u`"], move |_| {
            with_header(overlap.as_bytes(), 12)
        }),
        bytes("tensors that do not follow each other: gap", &[MODEL, "`u`"], move |_| {
            with_header(gap.as_bytes(), 20)
        }),
        bytes("offsets in reverse", &[MODEL, "`t`"], |_| one_tensor("[16,0]", 16)),
        bytes("offsets below zero", &[MODEL, "-16"], |_| one_tensor("[-16,0]", 16)),
        bytes("offsets that do not fit the shape", &[MODEL, "shape"], |_| one_tensor("[0,12]", 12)),
        bytes("a shape that overflows", &[MODEL, "verflow"], move |_| with_header(&huge, 16)),
        bytes("a number type nobody knows", &[MODEL, "F5"], move |_| with_header(&unknown, 16)),
        bytes("a tensor that a list describes", &[MODEL, "\"t\"", "no object"], |_| {
            with_header(br#"{"t":["F32",[2,2],[0,16]]}"#, 16)
        }),
        bytes("metadata that is not text", &[MODEL, "string"], move |_| {
            with_header(metadata.as_bytes(), 16)
        }),
        bytes("cut in the data: or too much", &[MODEL], |mut b| {
            b.extend([0; 32]);
            b
        }),
    ]
}

fn truncations() -> Vec<Case> {
    let cut = |name, keep: fn(usize) -> usize| {
        bytes(name, &[MODEL], move |mut b| {
            b.truncate(keep(b.len()));
            b
        })
    };
    vec![
        bytes("cut in the header's length", &["is 5 bytes"], |b| b[..5].to_vec()),
        bytes("cut in the header", &["the file is 100 bytes", "truncated"], |b| b[..100].to_vec()),
        cut("cut in the data: no data", |_| 1200),
        cut("cut in the data: a quarter", |n| n / 4),
        cut("cut in the data: half", |n| n / 2),
        cut("cut in the data: last byte", |n| n - 1),
    ]
}

fn files() -> Vec<Case> {
    vec![
        disk("nothing in the directory", &["no adapter_config.json"], |_| {}),
        disk("no tensor file", &[MODEL, "is missing"], |dir| {
            good(dir);
            fs::remove_file(dir.join(MODEL)).unwrap();
        }),
        disk("a pickle only", &["adapter_model.bin is a pickle", "safe_serialization"], |dir| {
            good(dir);
            fs::rename(dir.join(MODEL), dir.join("adapter_model.bin")).unwrap();
        }),
        bytes("a pickle by another name", &[MODEL, "not a safetensors file"], |_| {
            b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl".to_vec()
        }),
        bytes("a Git LFS pointer", &[MODEL, "Git LFS", "git lfs pull"], |_| {
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec()
        }),
        config("a Git LFS pointer as config", &[CONFIG, "Git LFS"], |_| {
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec()
        }),
        bytes("an HTML page", &[MODEL, "an HTML page"], |_| {
            b"<!DOCTYPE html><html><body>404: not found</body></html>".to_vec()
        }),
        config("an HTML page as config", &[CONFIG, "an HTML page"], |_| {
            b"<!DOCTYPE html><html><body>404: not found</body></html>".to_vec()
        }),
        disk("a directory in the place of the tensors", &[MODEL, "not a regular file"], |dir| {
            good(dir);
            fs::remove_file(dir.join(MODEL)).unwrap();
            fs::create_dir(dir.join(MODEL)).unwrap();
        }),
        disk("a directory in the place of the config", &[CONFIG, "not a regular file"], |dir| {
            fs::create_dir(dir.join(CONFIG)).unwrap();
        }),
        disk("a pipe in the place of the tensors", &[MODEL, "regular file"], |dir| {
            good(dir);
            fs::remove_file(dir.join(MODEL)).unwrap();
            assert!(Command::new("mkfifo").arg(dir.join(MODEL)).status().unwrap().success());
        }),
        disk("a device in the place of the tensors", &[MODEL, "outside the adapter root"], |dir| {
            good(dir);
            fs::remove_file(dir.join(MODEL)).unwrap();
            symlink("/dev/zero", dir.join(MODEL)).unwrap();
        }),
        disk("a link out of the root as config", &[CONFIG, "outside the adapter root"], |dir| {
            good(dir);
            let elsewhere = golden_dir().join("llama/adapters/lora_qv").join(CONFIG);
            fs::remove_file(dir.join(CONFIG)).unwrap();
            symlink(elsewhere, dir.join(CONFIG)).unwrap();
        }),
        disk("a file past the limit", &[MODEL, "8589934592 bytes", "at most 1048576"], |dir| {
            good(dir);
            let file = fs::File::options().write(true).open(dir.join(MODEL)).unwrap();
            file.set_len(8 << 30).unwrap();
        }),
        disk("a config past the limit", &[CONFIG, "at most 4194304"], |dir| {
            good(dir);
            fs::write(dir.join(CONFIG), " ".repeat(5 << 20)).unwrap();
        }),
    ]
}
