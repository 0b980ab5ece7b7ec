//! The base's weight files change while it is served. DoRA is read beside the base's weights, so
//! that a later load looks at them again.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use crate::process::Server;
use crate::serve::{golden, text};

/// A copy of the golden model and of its DoRA under several names.
fn copies(dir: &Path) {
    for from in ["", "adapters/lora_dora"] {
        let to = if from.is_empty() { dir.join("model") } else { dir.join("adapters/0") };
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(golden().join(from)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn a_weight_file_that_is_changed_spoils_no_adapter_and_ends_no_server() {
    let dir = tempfile::tempdir().unwrap();
    copies(dir.path());
    let (model, root) = (dir.path().join("model"), dir.path().join("adapters"));
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let start = || {
        let (model, root) = (text(&model), text(&root));
        Server::start(&[&model, "--allow-runtime-adapters", "--adapter-root", &root])
    };
    let load = |server: &Server, name: &str| {
        let body = json!({"lora_name": name, "lora_path": "0"});
        // Its content is held while a name has it: each load is to look at the weights.
        let loaded = server.send("POST", "/v1/load_lora_adapter", Some(&body));
        let gone = json!({"lora_name": name});
        server.send("POST", "/v1/unload_lora_adapter", Some(&gone));
        loaded
    };
    let serves = |server: &Server| {
        let body =
            json!({"model": "model", "prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0});
        let (status, reply) = server.send("POST", "/v1/completions", Some(&body));
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(status, 200, "{reply}");
        reply["choices"][0]["text"].clone()
    };
    let refused = |(status, body): (u16, String)| {
        assert!(status == 400 && body.contains("has changed since"), "{status} {body}");
        assert!(body.contains("model.safetensors"), "{body}");
    };

    let server = start();
    let said = serves(&server);
    assert_eq!(load(&server, "a").0, 200);
    // Another file takes its name, as a download does: the one that is open stays as it is.
    let other = model.join("new");
    fs::write(&other, vec![7; whole.len()]).unwrap();
    fs::rename(&other, &weights).unwrap();
    assert_eq!(load(&server, "b").0, 200);
    drop(server);

    fs::write(&weights, &whole).unwrap();
    let server = start();
    // Written to in its place.
    let mut changed = whole.clone();
    let end = changed.len();
    changed[end / 2..].fill(0);
    fs::write(&weights, &changed).unwrap();
    refused(load(&server, "c"));
    // Cut short: a mapped file would end the process here.
    File::options().write(true).open(&weights).unwrap().set_len(4096).unwrap();
    refused(load(&server, "d"));
    assert_eq!(serves(&server), said);
    assert_eq!(server.get("/health").0, 200);
}
