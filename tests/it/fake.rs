//! The HTTP layer over an engine that says what it is told to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tessera::adapter::{Adapter, AdapterError, AdapterFile, Catalog, LoadAdapter, Report};
use tessera::delta::DeltaBuilder;
use tessera::dtype::Dtype;
use tessera::engine::{Command, EngineHandle, Event, FinishReason, Generate, PromptScore};
use tessera::files::Folder;
use tessera::http::{App, HttpSettings, Listener, ServedModel, serve};
use tessera::ids::{Digest, TokenId};
use tessera::request::{Limits, Pooling, Request};
use tessera::text::{
    AdapterTexts, ChatTemplate, SamplingDefaults, ServedText, TextFiles, TextSettings, Tokenizer,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::harness;

pub const CONTEXT_TOKENS_MAX: u32 = 512;
pub const BASE: &str = "org/base";
/// Begin and end of a sequence in the tests' tokenizer.
pub const BOS: TokenId = 0;
pub const EOS: TokenId = 1;

/// The token of a printable ASCII character: byte-level vocabularies list them in order, here
/// after seven special tokens.
pub fn letter(c: char) -> TokenId {
    assert!(c.is_ascii_graphic());
    7 + c as u32 - u32::from('!')
}

/// The tokens of printable ASCII text, one a character.
pub fn letters(text: &str) -> Vec<TokenId> {
    text.chars().map(letter).collect()
}

/// What the engine does with a request.
#[derive(Clone)]
pub enum Script {
    /// These tokens, cut at the request's limit; the last finishes the sequence.
    Say(Vec<TokenId>, FinishReason),
    /// The prompt's own last token, so many times; the last finishes the sequence.
    Echo(usize),
    /// These tokens, then nothing until the client leaves.
    Hang(Vec<TokenId>),
    /// The same token for as long as it is taken, waiting for the reader.
    Endless,
    /// So many tokens, then a failure.
    Fail(usize),
    /// The engine is gone.
    Gone,
}

/// A logprob that does not survive a careless rounding.
pub fn logprob(position: usize) -> f32 {
    -0.1 - position as f32 / 3.0
}

/// A server to send requests to.
pub struct Fake {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    /// Sequences whose client left before the end.
    pub cancelled: Arc<AtomicUsize>,
    pub engine: EngineHandle,
    pub catalog: Arc<Catalog>,
    shutdown: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn say(text: &str) -> Self {
        let mut tokens = letters(text);
        tokens.push(EOS);
        Self::new(Script::Say(tokens, FinishReason::Stop), |_| {})
    }

    pub fn new(script: Script, change: impl FnOnce(&mut App)) -> Self {
        Self::with_queue(script, 256, change)
    }

    pub fn with_queue(script: Script, requests: usize, change: impl FnOnce(&mut App)) -> Self {
        Self::start(script, requests, change, Listener::from)
    }

    /// On what a listener becomes.
    pub fn listening(
        script: Script,
        change: impl FnOnce(&mut App),
        becomes: impl FnOnce(TcpListener) -> Listener + Send + 'static,
    ) -> Self {
        Self::start(script, 256, change, becomes)
    }

    fn start(
        script: Script,
        requests: usize,
        change: impl FnOnce(&mut App),
        becomes: impl FnOnce(TcpListener) -> Listener + Send + 'static,
    ) -> Self {
        let (engine, inbox) = EngineHandle::new(requests);
        let (seen, cancelled) = (Arc::default(), Arc::default());
        let catalog = Arc::new(Catalog::new(1 << 20));
        for (i, name) in ["sql", "org/chat"].into_iter().enumerate() {
            harness::name(&catalog, name, &adapter(i as u8 + 1), 1_700_000_000 + i as u64);
        }
        let mut app = app(engine.clone(), catalog.clone());
        change(&mut app);
        let fake = (Arc::clone(&seen), Arc::clone(&cancelled));
        std::thread::spawn(move || run(inbox, &script, &fake.0, &fake.1));
        let (shutdown, signal) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let signal = async { drop(signal.await) };
                serve(becomes(listener), app, signal).await.unwrap();
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        let address = address.recv().unwrap();
        let (shutdown, server) = (Some(shutdown), Some(server));
        Self { address, seen, cancelled, engine, catalog, shutdown, server }
    }

    /// The signal that SIGTERM is to the real one.
    pub fn shut_down(&mut self) {
        let _ = self.shutdown.take().unwrap().send(());
    }

    /// Waits for the server's end.
    pub fn join(mut self) {
        self.server.take().unwrap().join().unwrap();
    }

    /// Waits until so many sequences have been cancelled and no place in the queue is taken.
    pub fn wait_cancelled(&self, count: usize) {
        let state = || (self.cancelled.load(Ordering::SeqCst), self.engine.in_flight());
        wait_for(|| state() == (count, 0), || format!("{:?}", state()));
    }

    /// Waits until so many requests have reached the engine.
    pub fn wait_seen(&self, count: usize) {
        let seen = || self.seen.lock().unwrap().len();
        wait_for(|| seen() >= count, || format!("{} seen", seen()));
    }
}

/// Waits for something that must happen soon.
pub fn wait_for(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "in vain: {}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn app(engine: EngineHandle, catalog: Arc<Catalog>) -> App {
    let dir = crate::root().join("tests/data/text/byte_level");
    let files = TextFiles::read(&dir).unwrap();
    let tokenizer = Tokenizer::from_files(&files, CONTEXT_TOKENS_MAX).unwrap();
    let text = ServedText {
        tokenizer: Arc::new(tokenizer),
        template: ChatTemplate::from_files(&files, CONTEXT_TOKENS_MAX).unwrap().map(Arc::new),
        eos_tokens: vec![EOS],
        defaults: SamplingDefaults::default(),
        named_tokens: [("eos_token".to_owned(), "</s>".to_owned())].into(),
    };
    let settings = TextSettings {
        context_tokens_max: CONTEXT_TOKENS_MAX,
        vocabulary_tokens: 512,
        takes_defaults: true,
    };
    let texts = Arc::new(AdapterTexts::new(files, text, settings, true));
    let model = ServedModel {
        base_name: BASE.to_owned(),
        created: 1_700_000_000,
        merged: None,
        text: texts.base.clone(),
        limits: Limits {
            context_tokens_max: CONTEXT_TOKENS_MAX,
            vocabulary_tokens: 512,
            logprobs_max: 20,
        },
        hidden_size: 4,
    };
    let http = HttpSettings { runtime_adapters: true, ..HttpSettings::standard() };
    App { engine, catalog, loader: Arc::new(FakeLoad), texts, model, http }
}

/// An adapter whose digest is all `byte`.
pub fn adapter(byte: u8) -> Arc<Adapter> {
    Arc::new(Adapter {
        digest: Digest([byte; 32]),
        delta: Arc::new(DeltaBuilder::default().finish(Dtype::F32)),
        method: "LORA",
        report: Report::default(),
    })
}

/// An adapter's directory for the fake loader: `good-N` has digest N, `broken` is refused and
/// `panic` panics.
pub fn make_adapter(root: &Path, path: &str) {
    let dir = root.join(path);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(dir.file_name().unwrap()), "").unwrap();
}

/// Loads by the name of the one file that [`make_adapter`] puts into a directory.
struct FakeLoad;

impl LoadAdapter for FakeLoad {
    fn read(&self, folder: &Folder) -> Result<AdapterFile, AdapterError> {
        let Some(name) = folder.names(1).pop() else {
            return Err(AdapterError::NotFound("no adapter_config.json".to_owned()));
        };
        match name.strip_prefix("good-") {
            Some(digest) => Ok(AdapterFile {
                config: serde_json::Map::new(),
                tensors: BTreeMap::new(),
                digest: adapter(digest.parse().unwrap()).digest,
                bytes: Vec::new(),
                notes: Vec::new(),
            }),
            None if name == "panic" => panic!("the loader panics for a test"),
            None => Err(AdapterError::Invalid("rank 0 in 'r'; expected 1 or above".to_owned())),
        }
    }

    fn lower(&self, file: &AdapterFile) -> Result<Adapter, AdapterError> {
        Ok(Arc::into_inner(adapter(file.digest.0[0])).unwrap())
    }
}

type Seen = Mutex<Vec<(Request, Option<Digest>)>>;

fn run(
    mut inbox: mpsc::UnboundedReceiver<Command>,
    script: &Script,
    seen: &Arc<Seen>,
    cancelled: &Arc<AtomicUsize>,
) {
    while let Some(command) = inbox.blocking_recv() {
        let Command::Generate(generate) = command else { continue };
        let digest = generate.recipe.parts().first().map(|part| part.adapter.digest);
        seen.lock().unwrap().push((generate.request.clone(), digest));
        let (script, cancelled) = (script.clone(), cancelled.clone());
        std::thread::spawn(move || {
            if !play(&script, &generate) {
                cancelled.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

fn token(
    generate: &Generate,
    token: TokenId,
    position: usize,
    finish: Option<FinishReason>,
) -> Event {
    let asked = generate.request.terms().logprobs.unwrap_or(0);
    // The token itself first, then ones a unit less likely each.
    let top = (0..asked).map(|i| (token + i, logprob(position) - i as f32)).collect();
    Event::Token { token, logprob: logprob(position), top, finish }
}

/// A vector that says of which tokens it was made, and how.
fn pooled(request: &Request, pooling: Pooling) -> Vec<f32> {
    let prompt = request.prompt();
    match pooling {
        Pooling::Last => {
            let last = *prompt.last().unwrap() as f32;
            vec![last, 0.0, 0.0, last]
        }
        Pooling::Mean => vec![prompt.iter().sum::<TokenId>() as f32, 0.0, 0.0, 0.0],
    }
}

/// The second most likely each, in their place; the most likely where a token comes again.
fn scores(request: &Request) -> Vec<PromptScore> {
    let asked = request.terms().prompt_logprobs.unwrap_or(0);
    let score = |(i, &token): (usize, &TokenId)| {
        let top = (0..asked).map(|rank| (token + 1 - rank, logprob(i) + 1.0 - rank as f32));
        let rank = if token == request.prompt()[i - 1] { 1 } else { 2 };
        PromptScore { token, logprob: logprob(i), rank, top: top.collect() }
    };
    request.prompt().iter().enumerate().skip(1).map(score).collect()
}

/// False if the client left before the end.
fn play(script: &Script, generate: &Generate) -> bool {
    let events = &generate.events;
    let send = |event| events.blocking_send(event).is_ok();
    let say_until = |tokens: &[TokenId], reason| {
        let last = tokens.len().wrapping_sub(1);
        let finish = |i| if i == last { reason } else { None };
        tokens.iter().enumerate().all(|(i, &t)| send(token(generate, t, i, finish(i))))
    };
    let say = |tokens: &[TokenId]| say_until(tokens, None);
    let wait_closed = || {
        while !events.is_closed() {
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    };
    if !matches!(script, Script::Gone | Script::Fail(0)) {
        send(Event::Started { cached_tokens: 2 });
        if generate.request.terms().prompt_logprobs.is_some() {
            send(Event::Scores(scores(&generate.request)));
        }
        if let (Some(pooling), Script::Echo(_)) = (generate.request.terms().pooling, script) {
            return send(Event::Embedding(pooled(&generate.request, pooling)));
        }
        if generate.request.terms().tokens_max == 0 && !matches!(script, Script::Hang(_)) {
            return true;
        }
    }
    match script {
        Script::Say(tokens, reason) => {
            let count = tokens.len().min(generate.request.terms().tokens_max as usize);
            let reason = if count < tokens.len() { FinishReason::Length } else { *reason };
            say_until(&tokens[..count], Some(reason))
        }
        Script::Echo(count) => {
            let last = *generate.request.prompt().last().unwrap();
            say_until(&vec![last; *count], Some(FinishReason::Length))
        }
        Script::Hang(tokens) => say(tokens) && wait_closed(),
        Script::Endless => {
            while send(token(generate, letter('x'), 0, None)) {}
            false
        }
        Script::Fail(count) => {
            say(&vec![letter('x'); *count])
                && send(Event::Failed("the step failed for a test".to_owned()))
        }
        Script::Gone => true,
    }
}
