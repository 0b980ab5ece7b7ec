//! The loop: mutate, run, look, keep what is new.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::coverage::Coverage;
use crate::mutate::{Mutator, parts};
use crate::targets::{Run, Target};
use crate::{Rng, heap, panics, root, watch};

/// Kinds of faults after which a target is left.
const FAULTS_MAX: usize = 12;
/// Tries to make a faulty input smaller.
const SHRINKS_MAX: usize = 400;
/// Inputs after which a target is made again: a server and its threads keep what they have seen.
const RUNS_MAX: u64 = 20_000;
/// Bytes that an allocation of another thread may add to what an input seems to cost.
const HEAP_SLACK_BYTES: usize = 1 << 20;
/// Bytes of an error beside three times what it is about. Who sends or prints it bounds it further.
const ANSWER_BYTES_MAX: usize = 4_000;
/// Characters of what became of an input, by which its kind is known.
const KIND_CHARS_MAX: usize = 100;
/// How a quotation begins and ends.
const QUOTES: &[(char, char)] = &[('\'', '\''), ('"', '"'), ('`', '`'), ('[', ']'), ('{', '}')];

/// When to stop.
pub enum Budget {
    /// So many mutated inputs.
    Inputs(u64),
    /// So long.
    Time(Duration),
}

/// One target at work.
pub struct Fuzz<'a> {
    target: &'a Target,
    run: Run,
    rng: Rng,
    corpus: Vec<Vec<u8>>,
    /// Of which so many were there before.
    seeds: usize,
    /// How often each kind of answer came.
    kinds: BTreeMap<String, u64>,
    coverage: Coverage,
    faults: BTreeMap<String, PathBuf>,
    inputs: u64,
    began: Instant,
    slowest: Duration,
    heap_bytes_most: usize,
}

/// What became of an input.
struct Ran {
    is_new: bool,
    fault: Option<String>,
}

impl<'a> Fuzz<'a> {
    /// With the target's good inputs and those that are kept in the repository.
    pub fn new(target: &'a Target, seed: u64) -> Self {
        let mut corpus = (target.seeds)();
        let kept = fs::read_dir(root().join("tests/fuzz/corpus").join(target.name));
        let mut files: Vec<_> = kept.into_iter().flatten().map(|e| e.unwrap().path()).collect();
        files.sort();
        corpus.extend(files.iter().map(|file| fs::read(file).unwrap()));
        Self {
            target,
            run: (target.start)(),
            rng: Rng(seed),
            seeds: corpus.len(),
            corpus,
            kinds: BTreeMap::new(),
            coverage: Coverage::default(),
            faults: BTreeMap::new(),
            inputs: 0,
            began: Instant::now(),
            slowest: Duration::ZERO,
            heap_bytes_most: 0,
        }
    }

    /// Kinds of faults that were found.
    pub fn faults(&self) -> usize {
        self.faults.len()
    }

    /// Writes what was found to be new into a folder.
    pub fn keep(&self, folder: &Path) {
        let folder = folder.join(self.target.name);
        fs::create_dir_all(&folder).expect("a folder for what is new");
        for (i, input) in self.corpus[self.seeds..].iter().enumerate() {
            fs::write(folder.join(i.to_string()), input).expect("a file for what is new");
        }
    }

    /// One line for people.
    pub fn told(&self) -> String {
        let Self { target, inputs, kinds, corpus, coverage, slowest, .. } = self;
        let reached = match coverage.reached {
            0 => String::new(),
            reached => format!("{reached} places reached, "),
        };
        format!(
            "{}: {inputs} inputs in {:.1} min, {} kept, {} kinds of answers, {reached}slowest \
             {:.2} s, largest heap {} KiB, {} faults",
            target.name,
            self.began.elapsed().as_secs_f64() / 60.0,
            corpus.len(),
            kinds.len(),
            slowest.as_secs_f64(),
            self.heap_bytes_most >> 10,
            self.faults.len(),
        )
    }

    /// One input and what became of it.
    pub fn once(&mut self, input: &[u8]) {
        let ran = self.look(input);
        let kind = self.kinds.keys().next().cloned();
        println!("{}", ran.fault.or(kind).unwrap_or_default());
    }

    /// The good inputs as they are, then mutated ones.
    pub fn run(&mut self, budget: &Budget) {
        for input in self.corpus.clone() {
            self.try_input(&input);
        }
        let mut mutator = Mutator { rng: Rng(self.rng.bits()), words: self.target.words };
        let first = self.inputs;
        while self.faults.len() < FAULTS_MAX {
            let is_over = match *budget {
                Budget::Inputs(inputs) => self.inputs - first >= inputs,
                Budget::Time(time) => self.began.elapsed() >= time,
            };
            if is_over {
                break;
            }
            if self.inputs.is_multiple_of(RUNS_MAX) {
                self.run = (self.target.start)();
            }
            let (one, other) = (self.chosen(), self.chosen());
            let input = mutator.mutate(&self.corpus[one], &self.corpus[other]);
            if self.try_input(&input) {
                self.corpus.push(input);
            }
        }
        if std::env::var_os("TESSERA_FUZZ_KINDS").is_some() {
            self.kinds.iter().for_each(|(kind, count)| println!("{count:>8} {kind:?}"));
        }
    }

    /// The place of an input that was kept, rather one of the newest.
    fn chosen(&mut self) -> usize {
        let all = self.corpus.len();
        let first = if self.rng.one_in(2) { all - all.div_ceil(4) } else { 0 };
        first + self.rng.below(all - first)
    }

    /// Runs an input and tells of its fault; whether it is worth keeping.
    fn try_input(&mut self, input: &[u8]) -> bool {
        let ran = self.look(input);
        let Some(fault) = ran.fault else { return ran.is_new };
        let kind = kind_of(&fault);
        if !self.faults.contains_key(&kind) {
            let input = self.shrunk(input.to_vec(), &kind);
            let name = format!("{}-{}", self.target.name, self.faults.len());
            let file = folder().join(name);
            fs::write(&file, input).expect("a file for what was found");
            println!("{}: {fault}\n  {}", self.target.name, file.display());
            self.faults.insert(kind, file);
        }
        false
    }

    /// A smaller input with the same fault.
    fn shrunk(&mut self, mut input: Vec<u8>, kind: &str) -> Vec<u8> {
        let (mut tries, mut step) = (0, input.len() / 2);
        while step > 0 && tries < SHRINKS_MAX {
            let mut at = 0;
            while at < input.len() && tries < SHRINKS_MAX {
                tries += 1;
                let end = (at + step).min(input.len());
                let less = [&input[..at], &input[end..]].concat();
                match self.look(&less).fault {
                    Some(fault) if kind_of(&fault) == kind => input = less,
                    _ => at = end,
                }
            }
            step /= 2;
        }
        input
    }

    /// Runs an input, under watch.
    fn look(&mut self, input: &[u8]) -> Ran {
        self.inputs += 1;
        let parts = parts(input);
        watch::begin(&folder().join(format!("{}-current", self.target.name)), input);
        let (began, live) = (Instant::now(), heap::begin());
        Coverage::begin();
        let ended = catch_unwind(AssertUnwindSafe(|| (self.run)(&parts)));
        let (took, heap_bytes) = (began.elapsed(), heap::most().saturating_sub(live));
        let learns = self.coverage.learns();
        watch::end();
        self.slowest = self.slowest.max(took);
        self.heap_bytes_most = self.heap_bytes_most.max(heap_bytes);
        let heap_bytes_max = self.target.heap_bytes_max + HEAP_SLACK_BYTES;
        let fault = match (panics::take(), &ended) {
            (Some(panic), _) => Some(panic),
            (None, Err(_)) => Some("a panic of a library that nothing caught".to_owned()),
            (None, Ok(Err(fault))) => Some(fault.clone()),
            (None, Ok(Ok(_))) if heap_bytes > heap_bytes_max => {
                Some(format!("{heap_bytes} bytes of heap; at most {heap_bytes_max} are expected"))
            }
            (None, Ok(Ok(answer))) if answer.len() > ANSWER_BYTES_MAX + 3 * input.len() => {
                let start: String = answer.chars().take(200).collect();
                Some(format!("an error of {} bytes: {start:?}", answer.len()))
            }
            (None, Ok(Ok(_))) => None,
        };
        let kind = ended.ok().and_then(Result::ok).map(|answer| kind_of(&answer));
        let is_new = kind.is_some_and(|kind| {
            let count = self.kinds.entry(kind).or_default();
            *count += 1;
            *count == 1
        });
        // Answers tell less than counters do.
        Ran { is_new: learns || is_new && self.coverage.reached == 0, fault }
    }
}

/// Where files of this run are.
fn folder() -> PathBuf {
    env!("CARGO_TARGET_TMPDIR").into()
}

/// A text without what differs from case to case: numbers, what stands in quotes or brackets, and
/// what was found in place of what was expected.
fn kind_of(text: &str) -> String {
    let text = text.split(", got ").next().unwrap_or_default();
    let mut kind = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_digit = |c: &char| c.is_ascii_digit();
        if is_digit(&c) {
            while chars.next_if(is_digit).is_some() {}
            kind.push('0');
        } else if let Some((_, end)) = QUOTES.iter().find(|(start, _)| *start == c) {
            while chars.next_if(|other| other != end).is_some() {}
            chars.next();
            kind.push(c);
        } else {
            kind.push(c);
        }
    }
    kind.chars().take(KIND_CHARS_MAX).collect()
}
