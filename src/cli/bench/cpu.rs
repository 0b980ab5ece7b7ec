//! Steps on the CPU.
//!
//! Cases of one row count run in turn, round after round, and ratios are taken within a round: on a
//! machine that others use too, neighbours in time are the only fair comparison.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;

use super::BenchArgs;
use super::cases::{Case, random_adapter};
use super::report::{Line, about, write_json};
use super::steps::{self, BLOCK_TOKENS, median};
use crate::backend::cpu::Cpu;
use crate::backend::cpu::simd::Level;
use crate::backend::{Device, Rows};
use crate::cli::memory::available_bytes;
use crate::cli::progress::{counting, loading, waiting};
use crate::cli::{CliError, print};
use crate::ids::Slot;
use crate::model::{Checkpoint, Model};

type Kv = <Cpu as Device>::Kv;

/// More than any cache holds.
const BANDWIDTH_BYTES: usize = 512 << 20;

/// Runs the cases.
///
/// # Errors
/// [`CliError`]: an adapter or file that cannot be written.
pub fn run(
    args: &BenchArgs,
    cases: &[Case],
    checkpoint: Arc<Checkpoint>,
    scratch: &Path,
) -> Result<(), CliError> {
    let bench = Bench::new(args, cases, checkpoint, scratch)?;
    print(&bench.header())?;
    print(&about(bench.estimate(), &format!("{} rounds", args.rounds + 1)))?;
    let widths = args.rows.len() + usize::from(args.prefill > 0);
    let bar = counting("steps", (widths * cases.len() * (args.rounds + 1)) as u64);
    let show = |text: String| bar.suspend(|| print(&text));
    let mut lines = Vec::new();
    for &rows in &args.rows {
        let measured = bench.rounds(rows, &bar, |case, first| bench.decode(case, first, rows));
        show(bench.table(&format!("decode, {rows} rows"), rows, &measured))?;
        lines.extend(bench.lines("decode", rows, &measured));
    }
    if args.prefill > 0 {
        let tokens = args.prefill;
        let measured = bench.rounds(tokens, &bar, |case, first| bench.prefill(case, first));
        show(bench.table(&format!("prefill, {tokens} tokens"), tokens, &measured))?;
        lines.extend(bench.lines("prefill", tokens, &measured));
    }
    bar.finish_and_clear();
    let results = serde_json::json!({"device": "cpu", "context": args.context, "steps": lines});
    args.json.as_ref().map_or(Ok(()), |path| write_json(path, &results))
}

/// Of a case whose adapters start at slot `first`.
fn slot(case: &Case, first: usize, row: usize, rows: usize) -> Option<Slot> {
    case.adapter_of(row, rows).map(|adapter| Slot((first + adapter) as u32))
}

/// Keys, values and a step's activations must have room in memory.
fn check_room(args: &BenchArgs, checkpoint: &Checkpoint) -> Result<(), CliError> {
    let Some(available) = available_bytes() else { return Ok(()) };
    let rows = args.rows.iter().copied().max().unwrap_or(1) as u64;
    let (context, prefill) = (args.context as u64 + 1, args.prefill as u64);
    let page = Model::<Cpu>::kv_shape(checkpoint, 1, BLOCK_TOKENS).block_bytes() as u64;
    let pages = (rows * context.div_ceil(BLOCK_TOKENS as u64)).max(prefill.div_ceil(16));
    let config = &checkpoint.config;
    // At most: x, q, k, v, what attention and the MLP make of them, and logits of each row.
    let widths = (8 * config.hidden + 4 * config.inner) as u64;
    let step = rows.max(prefill) * widths + rows * config.vocabulary as u64;
    let needed = pages.saturating_mul(page).saturating_add(4 * step);
    match needed <= available {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "steps of these --rows, --context and --prefill take some {needed} bytes, and \
             {available} are available; give less"
        ))),
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    checkpoint: Arc<Checkpoint>,
    backend: Cpu,
    model: Model<Cpu>,
    merged: Option<Model<Cpu>>,
    slots: <Cpu as Device>::Slots,
    /// With the first slot of each.
    cases: Vec<(&'a Case, usize)>,
    /// What a pure read passes over, [`BANDWIDTH_BYTES`] in all.
    buffer: Vec<u64>,
}

/// Seconds of each round.
struct Measured {
    /// By case.
    steps: Vec<Vec<f64>>,
    /// Of a pure read of [`BANDWIDTH_BYTES`].
    reads: Vec<f64>,
}

impl Measured {
    /// Seconds of a case's best round.
    fn best(&self, case: usize) -> f64 {
        self.steps[case].iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Throughput of a case as a share of another's, the median over rounds.
    fn ratio(&self, case: usize, other: Option<usize>) -> Option<f64> {
        let pairs = self.steps[other?].iter().zip(&self.steps[case]);
        Some(median(pairs.map(|(other, own)| other / own).collect()))
    }
}

impl<'a> Bench<'a> {
    fn new(
        args: &'a BenchArgs,
        cases: &'a [Case],
        checkpoint: Arc<Checkpoint>,
        scratch: &Path,
    ) -> Result<Self, CliError> {
        check_room(args, &checkpoint)?;
        let backend = Cpu::new(args.threads);
        let positions = args.context.max(args.prefill) + 1;
        let bar = loading(checkpoint.weight_bytes());
        let model = Model::load(&checkpoint, &backend, positions, &|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        let model = model?;
        let bar = waiting("making adapters");
        let rows_max = args.rows.iter().copied().max().unwrap_or(1);
        let (mut adapters, mut placed) = (Vec::new(), Vec::new());
        for case in cases {
            placed.push((case, adapters.len()));
            for (_, &kind) in (0..case.count(rows_max)).zip(case.kinds.iter().cycle()) {
                let seed = adapters.len() as u64;
                adapters.push(random_adapter(kind, case.rank, seed, &checkpoint, scratch)?);
            }
        }
        let mut slots = backend.slots(adapters.len());
        for (slot, adapter) in adapters.iter().enumerate() {
            let written = backend.write_slot(&mut slots, Slot(slot as u32), adapter.delta.clone());
            written.map_err(|e| CliError::General(e.to_string()))?;
        }
        let merged = placed.iter().find(|(case, _)| case.merged).map(|(_, first)| {
            let mut model = Model::load(&checkpoint, &backend, positions, &|_| {})?;
            model.fold(&backend, &adapters[*first].delta);
            Ok::<_, CliError>(model)
        });
        let merged = merged.transpose()?;
        let buffer = vec![1u64; BANDWIDTH_BYTES / 8];
        bar.finish_and_clear();
        Ok(Self { args, checkpoint, backend, model, merged, slots, cases: placed, buffer })
    }

    fn header(&self) -> String {
        let weights = self.checkpoint.weight_bytes();
        format!(
            "{} weights {:.2} GB, {} threads, {}, context {}, rank {}\n",
            self.checkpoint.dtype.name(),
            weights as f64 / 1e9,
            self.args.threads,
            Level::detect().name(),
            self.args.context,
            self.args.rank
        )
    }

    /// A decode step of a case whose adapters start at slot `first`.
    fn decode(&self, case: &Case, first: usize, rows: usize) -> Rows {
        steps::decode(rows, self.args.context, |row| slot(case, first, row, rows))
    }

    fn prefill(&self, case: &Case, first: usize) -> Rows {
        let tokens = self.args.prefill;
        steps::prompt(0, 0, tokens, tokens, slot(case, first, 0, 1))
    }

    /// The KV of `width` rows, or of a prompt of as many tokens.
    fn kv(&self, width: usize) -> Kv {
        let tokens = self.args.context.max(self.args.prefill) + 1;
        let blocks = width * steps::pages(tokens);
        let shape = Model::<Cpu>::kv_shape(&self.checkpoint, blocks, BLOCK_TOKENS);
        self.backend.kv(shape).expect("This is a bug: no memory for rows that were to be timed.")
    }

    /// Seconds of one step.
    fn step(&self, case: &Case, kv: &mut Kv, rows: &Rows) -> f64 {
        let merged = if case.merged { self.merged.as_ref() } else { None };
        let model = merged.unwrap_or(&self.model);
        let start = Instant::now();
        steps::run(&self.backend, model, &self.slots, kv, rows)
            .expect("This is a bug: the CPU has no faults.");
        start.elapsed().as_secs_f64()
    }

    /// Seconds that all rounds will take, by one step of the first case at each width.
    fn estimate(&self) -> f64 {
        let Some(&(case, first)) = self.cases.first() else { return 0.0 };
        let decode = self.args.rows.iter().map(|&rows| (rows, self.decode(case, first, rows)));
        let prompts = (self.args.prefill > 0).then(|| self.prefill(case, first));
        let prompts = prompts.map(|rows| (self.args.prefill, rows));
        // The first step of all finds the weights in no cache.
        if let Some(&rows) = self.args.rows.first() {
            self.step(case, &mut self.kv(rows), &self.decode(case, first, rows));
        }
        let read = self.read();
        let round = |(width, rows): (usize, Rows)| {
            self.step(case, &mut self.kv(width), &rows) * self.cases.len() as f64 + read
        };
        decode.chain(prompts).map(round).sum::<f64>() * (self.args.rounds + 1) as f64
    }

    /// One step of each case and one pure read, round after round.
    fn rounds(
        &self,
        width: usize,
        bar: &ProgressBar,
        rows: impl Fn(&Case, usize) -> Rows,
    ) -> Measured {
        let mut kv = self.kv(width);
        let mut measured = Measured { steps: vec![Vec::new(); self.cases.len()], reads: vec![] };
        // The first round only warms caches and is not kept.
        for round in 0..=self.args.rounds {
            let keep = |seconds: f64, times: &mut Vec<f64>| {
                if round > 0 {
                    times.push(seconds);
                }
            };
            keep(self.read(), &mut measured.reads);
            for (&(case, first), times) in self.cases.iter().zip(&mut measured.steps) {
                keep(self.step(case, &mut kv, &rows(case, first)), times);
                bar.inc(1);
            }
        }
        measured
    }

    /// Seconds of a pure read of the buffer by all threads.
    fn read(&self) -> f64 {
        let part = self.buffer.len().div_ceil(self.args.threads);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in self.buffer.chunks(part) {
                // Many accumulators, so that the additions do not wait for each other.
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for chunk in part.chunks_exact(32) {
                        sums.iter_mut().zip(chunk).for_each(|(s, x)| *s = s.wrapping_add(*x));
                    }
                    black_box(sums)
                });
            }
        });
        start.elapsed().as_secs_f64()
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.cases.iter().position(|(case, _)| case.name == name)
    }

    fn lines(&self, phase: &'static str, rows: usize, measured: &Measured) -> Vec<Line> {
        let line = |(index, (case, _)): (usize, &(&Case, usize))| Line {
            phase,
            case: case.name.clone(),
            rows,
            ms: Some(measured.best(index) * 1e3),
            tokens_per_second: Some(rows as f64 / measured.best(index)),
            of_base: measured.ratio(index, self.named("base")),
            note: None,
        };
        self.cases.iter().enumerate().map(line).collect()
    }

    /// Tokens per second are of the best round; ratios are medians over rounds.
    fn table(&self, title: &str, tokens: usize, measured: &Measured) -> String {
        let weights = self.checkpoint.weight_bytes() as f64;
        let read = median(measured.reads.iter().map(|t| BANDWIDTH_BYTES as f64 / t).collect());
        let mut text = format!("\n{title} (pure read: {:.1} GB/s)\n", read / 1e9);
        text += &format!("{:<12} {:>9} {:>10}", "case", "ms", "tokens/s");
        text += &format!(" {:>8} {:>8} {:>8}\n", "of base", "of one", "of read");
        for (index, (case, _)) in self.cases.iter().enumerate() {
            let ratio = |name: &str| {
                let ratio = measured.ratio(index, self.named(name));
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let shares = measured.reads.iter().zip(&measured.steps[index]);
            let shares = shares.map(|(read, t)| weights / t / (BANDWIDTH_BYTES as f64 / read));
            text += &format!(
                "{:<12} {:>9.2} {:>10.1} {:>8} {:>8} {:>8.2}\n",
                case.name,
                measured.best(index) * 1e3,
                tokens as f64 / measured.best(index),
                ratio("base"),
                ratio("one"),
                median(shares.collect())
            );
        }
        text
    }
}
