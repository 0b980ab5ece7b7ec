//! A file of keys. No error holds a part of a key.

use std::fs;

use tessera::http::Keys;

use super::{Target, same};

/// What each good key begins with.
const SECRET: &str = "s3cretkey";

/// The file.
pub const KEYS: Target = Target {
    name: "keys",
    seeds: || {
        [
            "[[keys]]\nname = 'acme'\nkey = 's3cretkey1'\nadapters = ['*']\n",
            "[[keys]]\nname = 'a'\nkey = ['s3cretkey1', 's3cretkey2']\nadapters = ['sql', 'x-*']\n\
             base = true\nadmin = false\nrequests_per_minute = 60\ntokens_per_minute = 1000\n\
             concurrency = 2\nweight = 2.5\npriority = 'high'\n\n[[keys]]\nname = 'b'\n\
             key = 'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    },
    words: &[
        "[[keys]]\n",
        "[keys]\n",
        "name = ",
        "key = ",
        "adapters = ",
        "base = ",
        "admin = ",
        "requests_per_minute = ",
        "tokens_per_minute = ",
        "concurrency = ",
        "weight = ",
        "priority = ",
        "true",
        "false",
        "['*']",
        "'*'",
        "sha256:",
        "'''",
        "\"\"\"",
        "inf",
        "nan",
        "-inf",
        "0x10",
        "1979-05-27T07:32:00Z",
        "{ a = 1 }",
        "a.b.c = 1\n",
        "'base'",
        "'low'",
        "'s3cretkey3'",
    ],
    start: || {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.toml");
        Box::new(move |parts| {
            let _keep = &dir;
            let bytes = parts.concat();
            fs::write(&path, &bytes).expect("a file of keys");
            let read = || Keys::open(Vec::new(), Some(path.clone())).map(|keys| keys.describe());
            let keys = read();
            same(&read(), &keys, "a ring of keys")?;
            let (Ok(said) | Err(said)) = keys.clone().map(|lines| lines.join("\n"));
            // What stands elsewhere may be a name by now.
            let file = String::from_utf8_lossy(&bytes);
            let is_key = |line: &str| line.starts_with("key =") || !line.contains(SECRET);
            if said.contains(SECRET) && file.lines().all(is_key) {
                return Err(format!("a key is told: {said}"));
            }
            match keys {
                Ok(lines) => Ok(lines.join("; ")),
                Err(error) => Ok(error),
            }
        })
    },
    slice: 200,
    heap_bytes_max: 32 << 20,
};
