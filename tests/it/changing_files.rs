//! Adapters whose files change while they are read: what is served is one version, whole.

mod links;
mod swapped;

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use tessera::adapter::{
    Adapter, AdapterError, AdapterFile, FileLimits, LoadAdapter, Loader, not_opened,
};
use tessera::engine::CheckpointBase;
use tessera::files::{Folder, NotRead, Root, steadily};
use tessera::text::TextFiles;

use crate::client::post;
use crate::fake::{Fake, Script};
use crate::files::Draft;
use crate::harness::Golden;
use crate::process::tessera;

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
const VALIDATE: &str = "/v1/adapters/validate";
/// What errors call a root.
const WHAT: &str = "the adapter root";

/// Writes a version of an adapter, and says its digest. Config and tensors are both others.
fn version(dir: &Path, number: u32) -> String {
    let mut draft = Draft::golden("llama", "lora_qv");
    draft.set("lora_alpha", 8 * number);
    draft.multiply("lora_B", number as f32);
    draft.write(dir);
    digest(dir)
}

fn limits() -> FileLimits {
    FileLimits::new(1 << 20)
}

fn digest(dir: &Path) -> String {
    AdapterFile::read(&Folder::open(dir).unwrap(), &limits()).unwrap().digest.to_string()
}

/// What two names stand for, exchanged in one step.
fn exchange(a: &Path, b: &Path) {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A digest, or a code or text that says why there is none.
type Outcome = Result<String, String>;

/// A way in which a server reads what lies beneath its root.
struct Way {
    name: &'static str,
    read: Box<dyn Fn(&str) -> Outcome + Send + Sync>,
}

/// All of them.
fn ways(root: &Path) -> Vec<Way> {
    let fake = Fake::new(Script::Echo(1), |app| {
        app.loader = Arc::new(Golden::open("llama", None).loader);
        app.http.adapter_root = Some(root.to_owned());
        app.http.loads_max = 16;
    });
    let http = move |path: &str| {
        // All of it is kept here: without the rest the server ends.
        let fake = &fake;
        let answer = post(fake.address, VALIDATE, &json!({"lora_path": path}));
        if answer.status == 200 {
            return Ok(answer.json()["digest"].as_str().unwrap().to_owned());
        }
        match answer.error().1.as_str() {
            "invalid_adapter" => Err(answer.message()),
            code => Err(code.to_owned()),
        }
    };
    let library = |root: Root| -> Box<dyn Fn(&str) -> Outcome + Send + Sync> {
        Box::new(move |path| read_beneath(&root, Path::new(path)))
    };
    let [kernel, own] = [Root::new, Root::without_openat2].map(|new| new(root, WHAT).unwrap());
    vec![
        Way { name: "http", read: Box::new(http) },
        Way { name: "openat2", read: library(kernel) },
        Way { name: "without openat2", read: library(own) },
    ]
}

fn read_beneath(root: &Root, path: &Path) -> Outcome {
    let read = |folder: &Folder| {
        let file = AdapterFile::read(folder, &limits())?;
        let own = TextFiles::of_adapter(folder);
        own.map_err(|error| AdapterError::Invalid(error.to_string()))?;
        Ok(file.digest.to_string())
    };
    let refused = |error: AdapterError| match error {
        AdapterError::NotFound(_) => "adapter_not_found".to_owned(),
        error => error.to_string(),
    };
    match steadily(|| root.folder(path), read) {
        Ok(found) => found.map_err(refused),
        Err(NotRead::Outside(_) | NotRead::Far | NotRead::Dangling) => {
            Err("path_outside_root".to_owned())
        }
        Err(NotRead::Changed) => Err("adapter_changing".to_owned()),
        Err(why) => Err(refused(not_opened(path, why))),
    }
}

/// The content of both files of a folder, if they are there; `between` them, something happens.
fn both(folder: &Folder, between: impl Fn()) -> [Option<Vec<u8>>; 2] {
    let content = |name| {
        let (file, _) = folder.file(name).ok()?;
        let mut bytes = Vec::new();
        (&*file).read_to_end(&mut bytes).unwrap();
        Some(bytes)
    };
    let config = content(CONFIG);
    between();
    [config, content(MODEL)]
}

/// One thing that happens to the directory `at` of version 1; `new` is one of version 2.
type Change = fn(&Path, &Path);

/// What a reader has to notice, and how often it reads: once where the directory that it opened
/// goes on being what it was.
const CHANGES: &[(&str, usize, Change)] = &[
    ("both files, in one step each", 2, |at, new| {
        [CONFIG, MODEL].iter().for_each(|name| exchange(&at.join(name), &new.join(name)));
    }),
    ("a file, written over, with its old time", 2, |at, new| {
        for name in [CONFIG, MODEL] {
            let file = fs::File::options().write(true).open(at.join(name)).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            fs::write(at.join(name), fs::read(new.join(name)).unwrap()).unwrap();
            file.set_modified(time).unwrap();
        }
    }),
    ("the directory, in one step", 1, exchange),
    ("the directory, removed", 2, |at, new| {
        fs::remove_dir_all(at).unwrap();
        fs::rename(new, at).unwrap();
    }),
    ("links to the files, one after the other", 2, |at, new| {
        for name in [CONFIG, MODEL] {
            fs::remove_file(at.join(name)).unwrap();
            symlink(Path::new("../new").join(name), at.join(name)).unwrap();
        }
        assert!(new.ends_with("new"));
    }),
];

#[test]
fn what_changes_while_it_is_read_is_read_again() {
    type Open = fn(&Path) -> Result<Folder, NotRead>;
    let opens: [Open; 3] = [
        |root| Folder::open(&root.join("at")),
        |root| Root::new(root, WHAT).unwrap().folder(Path::new("at")),
        |root| Root::without_openat2(root, WHAT).unwrap().folder(Path::new("at")),
    ];
    for (name, reads, change) in CHANGES {
        for open in opens {
            let dir = tempfile::tempdir().unwrap();
            let (at, new) = (dir.path().join("at"), dir.path().join("new"));
            version(&at, 1);
            version(&new, 2);
            let [old_files, new_files] =
                [&at, &new].map(|dir| [CONFIG, MODEL].map(|f| fs::read(dir.join(f)).ok()));
            let tries = Cell::new(0);
            let read = |folder: &Folder| {
                tries.set(tries.get() + 1);
                both(folder, || {
                    if tries.get() == 1 {
                        change(&at, &new)
                    }
                })
            };
            let found = steadily(|| open(dir.path()), read).unwrap();
            assert_eq!(tries.get(), *reads, "{name}");
            assert!(found == if *reads == 1 { old_files } else { new_files }, "{name}");
        }
    }
}

#[test]
fn what_goes_there_and_back_while_it_is_read_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (at, new) = (dir.path().join("at"), dir.path().join("new"));
    version(&at, 1);
    version(&new, 2);
    let swap = || exchange(&at.join(MODEL), &new.join(MODEL));
    let tries = Cell::new(0);
    let read = |folder: &Folder| {
        tries.set(tries.get() + 1);
        let is_first = tries.get() == 1;
        let found = both(folder, || {
            if is_first {
                swap()
            }
        });
        if is_first {
            swap();
        }
        found
    };
    let found = steadily(|| Folder::open(&at), read).unwrap();
    assert_eq!(tries.get(), 2);
    assert!(found == [CONFIG, MODEL].map(|name| fs::read(at.join(name)).ok()));

    // A file that was not there, too; and an error stands for as long as its cause.
    let text = |folder: &Folder| {
        let found = TextFiles::of_adapter(folder).map(|files| files.chat_template);
        if !at.join("chat_template.jinja").exists() {
            fs::write(at.join("chat_template.jinja"), "x").unwrap();
        }
        found
    };
    assert_eq!(steadily(|| Folder::open(&at), text).unwrap(), Ok(Some(b"x".to_vec())));
    let mend = |folder: &Folder| {
        let found = AdapterFile::read(folder, &limits()).map(|file| file.digest.to_string());
        version(&at, 2);
        found
    };
    fs::write(at.join(CONFIG), "{").unwrap();
    let broken = steadily(|| Folder::open(&at), |f| AdapterFile::read(f, &limits()).err());
    assert!(broken.unwrap().unwrap().to_string().contains("JSON"));
    assert_eq!(steadily(|| Folder::open(&at), mend).err(), Some(NotRead::Changed));
    assert_eq!(digest(&at), version(&new, 2));
}

/// Reads as the server does, and writes the files anew each time.
struct Restless {
    loader: Loader<CheckpointBase>,
    dir: std::path::PathBuf,
}

impl LoadAdapter for Restless {
    fn read(&self, folder: &Folder) -> Result<AdapterFile, AdapterError> {
        let file = self.loader.read(folder);
        version(&self.dir, 1);
        file
    }

    fn lower(&self, file: &AdapterFile) -> Result<Adapter, AdapterError> {
        self.loader.lower(file)
    }
}

#[test]
fn files_that_never_rest_are_a_clients_to_try_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("at");
    version(&at, 1);
    let restless = Restless { loader: Golden::open("llama", None).loader, dir: at.clone() };
    let text = restless.load(&at).err().unwrap().to_string();
    assert!(text.contains("changed while it was read") && !text.contains("at/"), "{text}");
    let fake = Fake::new(Script::Echo(1), |app| {
        app.loader = Arc::new(restless);
        app.http.adapter_root = Some(dir.path().to_owned());
    });
    for path in [VALIDATE, "/v1/load_lora_adapter"] {
        let answer = post(fake.address, path, &json!({"lora_name": "n", "lora_path": "at"}));
        let error = answer.error();
        let got = (answer.status, error.1.as_str(), error.0.as_deref());
        assert_eq!(got, (409, "adapter_changing", Some("lora_path")), "{}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(answer.message().contains("Try again"), "{}", answer.message());
    }
    assert!(fake.catalog.get("n").is_none());
}

/// A pipe that nobody writes to, in every place that is read.
#[test]
fn a_pipe_holds_up_nobody_wherever_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let names = [CONFIG, MODEL, "tokenizer.json", "generation_config.json"];
    for name in names {
        let at = root.join(name);
        version(&at, 1);
        let _ = fs::remove_file(at.join(name));
        mkfifo(&at.join(name));
        let shown = tessera(&["inspect", at.to_str().unwrap()]).output().unwrap();
        let text = String::from_utf8(shown.stderr).unwrap();
        assert!(text.contains(name) && text.contains("is a pipe"), "{text}");
    }
    mkfifo(&root.join("pipe"));
    for way in ways(root) {
        for name in names {
            let text = (way.read)(name).unwrap_err();
            assert!(text.contains(name) && text.contains("is a pipe"), "{}: {text}", way.name);
        }
        let text = (way.read)("pipe").unwrap_err();
        assert!(text.contains("give the directory"), "{}: {text}", way.name);
        assert_eq!((way.read)("pipe/x").unwrap_err(), "adapter_not_found", "{}", way.name);
    }
    let at = root.join(CONFIG);
    symlink("/dev/null", at.join("added_tokens.json")).unwrap();
    let text = TextFiles::of_adapter(&Folder::open(&at).unwrap()).unwrap_err().to_string();
    assert!(text.contains("added_tokens.json") && text.contains("or device"), "{text}");
    fs::rename(at.join(CONFIG), at.join("tokenizer.json")).unwrap();
    let text = TextFiles::read(&at).unwrap_err().to_string();
    assert!(text.contains("tokenizer.json") && text.contains("is a pipe"), "{text}");
}
