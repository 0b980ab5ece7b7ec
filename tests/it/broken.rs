//! Broken adapters: each is refused with its own message while another request streams.

mod configs;
mod containers;
mod floods;
mod folders;
mod mixed;
mod tensors;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tessera::adapter::{AdapterError, Allowed, Base, FileLimits, LoadAdapter, Loader, not_opened};
use tessera::dtype::Dtype;
use tessera::engine::{CheckpointBase, EngineHandle, Event};
use tessera::files::{Root, steadily};
use tessera::ids::TokenId;
use tessera::recipe::Recipe;
use tessera::request::{Limits, Request, RequestFields};

use crate::files::{Draft, tensor_bytes};
use crate::harness::{Golden, roomy};

/// More than any golden adapter has.
const TENSORS_BYTES_MAX: u64 = 1 << 20;

/// One broken adapter.
pub struct Case {
    /// `cause` or `cause: variant`; variants of one cause may read alike.
    name: &'static str,
    /// What the message must say: the field or tensor, what was expected, what was found.
    expect: &'static [&'static str],
    /// Writes it into the directory given.
    make: Box<dyn Fn(&Path)>,
    /// The width in which the base keeps adapters.
    dtype: Dtype,
}

/// Anything at all on disk.
fn disk(
    name: &'static str,
    expect: &'static [&'static str],
    make: impl Fn(&Path) + 'static,
) -> Case {
    Case { name, expect, make: Box::new(make), dtype: Dtype::F32 }
}

/// A golden adapter of `llama`, changed.
fn edit(
    name: &'static str,
    golden: &'static str,
    expect: &'static [&'static str],
    change: impl Fn(&mut Draft) + 'static,
) -> Case {
    disk(name, expect, move |dir| {
        let mut draft = Draft::golden("llama", golden);
        change(&mut draft);
        draft.write(dir);
    })
}

/// A plain LoRA with other bytes as its tensor file.
fn bytes(
    name: &'static str,
    expect: &'static [&'static str],
    change: impl Fn(Vec<u8>) -> Vec<u8> + 'static,
) -> Case {
    disk(name, expect, move |dir| {
        let draft = Draft::golden("llama", "lora_qv");
        draft.write(dir);
        let changed = change(tensor_bytes(&draft.tensors));
        std::fs::write(dir.join("adapter_model.safetensors"), changed).unwrap();
    })
}

/// A plain LoRA with another text as its config.
fn config(
    name: &'static str,
    expect: &'static [&'static str],
    change: impl Fn(String) -> Vec<u8> + 'static,
) -> Case {
    disk(name, expect, move |dir| {
        let draft = Draft::golden("llama", "lora_qv");
        draft.write(dir);
        let changed = change(serde_json::to_string(&draft.config).unwrap());
        std::fs::write(dir.join("adapter_config.json"), changed).unwrap();
    })
}

/// A plain LoRA with one config field set to `value` (JSON text).
fn field(
    name: &'static str,
    expect: &'static [&'static str],
    key: &'static str,
    value: &'static str,
) -> Case {
    edit(name, "lora_qv", expect, move |draft| {
        draft.set(key, serde_json::from_str::<serde_json::Value>(value).unwrap());
    })
}

impl Case {
    fn at(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    /// A further change to the directory, on top.
    fn with(self, change: impl Fn(&mut Draft) + 'static) -> Self {
        let make = self.make;
        let make = Box::new(move |dir: &Path| {
            make(dir);
            let mut draft = Draft::read(dir);
            change(&mut draft);
            draft.write(dir);
        });
        Self { make, ..self }
    }

    fn cause(&self) -> &'static str {
        self.name.split(':').next().unwrap()
    }
}

fn loader(dtype: Dtype) -> Loader<CheckpointBase> {
    let golden = Golden::open("llama", Some(dtype));
    let limits = FileLimits::new(TENSORS_BYTES_MAX);
    Loader {
        base: golden.loader.base,
        fits: None,
        limits,
        base_names: Vec::new(),
        allowed: Allowed::default(),
    }
}

fn long_request() -> Request {
    let limits = Limits { context_tokens_max: 512, vocabulary_tokens: 512, logprobs_max: 0 };
    let prompt = (0..24).map(|i| i * 7 % 512).collect();
    let fields = RequestFields { tokens_max: Some(96), ..RequestFields::default() };
    Request::new(prompt, fields, &limits).unwrap()
}

/// The tokens of one request with the golden LoRA.
fn stream(engine: &EngineHandle, golden: &Golden) -> Vec<TokenId> {
    let ticket = engine.reserve(1).unwrap().remove(0);
    let recipe = Recipe::one(golden.adapter("lora_qv"));
    let mut events = engine.generate(ticket, long_request(), recipe);
    let mut tokens = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Token { token, finish, .. } => {
                tokens.push(token);
                if finish.is_some() {
                    break;
                }
            }
            Event::Started { .. } => {}
            Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
            Event::NoTokenLeft | Event::NotFinite => panic!("no token could be drawn"),
            Event::Failed(why) | Event::Astray(why) => panic!("{why}"),
        }
    }
    tokens
}

/// What is wrong with a message, whatever the case.
fn faults(case: &Case, message: &str, root: &Path) -> Vec<String> {
    let missing = case.expect.iter().filter(|part| !message.contains(**part));
    let mut faults: Vec<String> = missing.map(|part| format!("lacks '{part}'")).collect();
    let folder = root.file_name().unwrap().to_str().unwrap();
    let leaks = [root.to_str().unwrap(), folder, "secret", "tmp"];
    faults.extend(leaks.iter().filter(|l| message.contains(**l)).map(|l| format!("tells {l}")));
    if message.contains('\n') || message.len() > 600 {
        faults.push("is more than a line".into());
    }
    faults.iter().map(|fault| format!("{}: {fault}: {message}", case.name)).collect()
}

/// As a server does with what lies beneath its root.
fn load(loader: &Loader<CheckpointBase>, root: &Root, dir: &Path) -> Result<(), AdapterError> {
    let read = steadily(|| root.folder(dir), |folder| loader.read(folder));
    let file = read.map_err(|why| not_opened(dir, why))??;
    loader.lower(&file).map(drop)
}

#[test]
fn every_broken_adapter_is_refused_with_its_own_message_while_a_good_one_streams() {
    let golden = Golden::open("llama", None);
    let engine = golden.engine(roomy(), 4);
    let undisturbed = stream(&engine, &golden);
    let cases: Vec<Case> = [
        containers::cases(),
        folders::cases(),
        configs::cases(),
        tensors::cases(),
        mixed::cases(),
        floods::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(cases.len() >= 100, "{} cases", cases.len());

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let bound = Root::new(&root, "the adapter root").unwrap();
    let loaders = [loader(Dtype::F32), loader(Dtype::F16)];
    let over = AtomicBool::new(false);
    let (streams, refused) = thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            let mut streams = Vec::new();
            while !over.load(Ordering::Acquire) || streams.is_empty() {
                streams.push(stream(&engine, &golden));
            }
            streams
        });
        // Every case is tried before any is judged, so that one run shows all that is wrong.
        let refused: Vec<Result<String, String>> = cases
            .iter()
            .enumerate()
            .map(|(i, case)| {
                let dir = root.join(format!("secret-{i}"));
                std::fs::create_dir(&dir).unwrap();
                (case.make)(&dir);
                let loader = loaders.iter().find(|l| l.base.adapter_dtype() == case.dtype).unwrap();
                match load(loader, &bound, &dir) {
                    Ok(_) => Err(format!("{}: accepted", case.name)),
                    Err(AdapterError::Invalid(text) | AdapterError::NotFound(text)) => Ok(text),
                }
            })
            .collect();
        over.store(true, Ordering::Release);
        (streaming.join().unwrap(), refused)
    });
    let accepted: Vec<_> = refused.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(accepted.is_empty(), "{accepted:#?}");
    let messages: Vec<String> = refused.into_iter().map(Result::unwrap).collect();
    let faults: Vec<String> =
        cases.iter().zip(&messages).flat_map(|(case, text)| faults(case, text, &root)).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let mut alike = Vec::new();
    for (i, (case, message)) in cases.iter().zip(&messages).enumerate() {
        let same =
            |(other, text): &(&Case, &String)| *text == message && other.cause() != case.cause();
        let others = cases[..i].iter().zip(&messages).filter(same);
        alike.extend(others.map(|(other, _)| (other.name, case.name, message)));
    }
    assert!(alike.is_empty(), "different causes read alike: {alike:#?}");
    assert!(streams.iter().all(|tokens| *tokens == undisturbed), "a stream was disturbed");
    println!("{} cases, {} streams meanwhile", cases.len(), streams.len());
    assert_eq!(stream(&engine, &golden), undisturbed, "a good load after the bad ones");
}
