//! `tessera bench`: prefill and decode steps, in this process, against rows, adapters and kinds.
//!
//! Cases of one row count run in turn, round after round, and ratios are taken within a round: on a
//! machine that others use too, neighbours in time are the only fair comparison.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::synth::{AdapterKind, AdapterShape, Preset, synth_adapter, synth_model};
use super::{CliError, base, parse_dtype, print};
use crate::adapter::{Adapter, FileLimits, Load, Loader};
use crate::backend::cpu::Cpu;
use crate::backend::cpu::simd::Level;
use crate::backend::{Adapters, Backend, Rows, SampleRow, Span};
use crate::dtype::Dtype;
use crate::engine::CheckpointBase;
use crate::ids::{BlockId, Slot};
use crate::model::{Checkpoint, Model};
use crate::request::SamplingParams;

const BLOCK_TOKENS: usize = 16;
/// More than any cache holds.
const BANDWIDTH_BYTES: usize = 512 << 20;

/// Flags of `tessera bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Model directory or Hub id; default: random weights of --preset's shape.
    pub model: Option<String>,
    /// Shape of the random model.
    #[arg(long, value_enum, default_value = "403m")]
    pub preset: Preset,
    /// Width of the weights: f32, f16 or bf16.
    #[arg(long, default_value = "bf16", value_parser = parse_dtype)]
    pub dtype: Dtype,
    /// Threads that compute.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Rows of a decode step.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    pub rows: Vec<usize>,
    /// Cases: base, one, distinct, mos, ssf, ia3, dora, mix, merged.
    #[arg(long, value_delimiter = ',', default_value = "base,one,distinct,mos,mix")]
    pub cases: Vec<String>,
    /// Rank of the adapters.
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// Tokens that each row attends to.
    #[arg(long, default_value_t = 128)]
    pub context: usize,
    /// Tokens of one prefill step; 0 leaves prefill out.
    #[arg(long, default_value_t = 256)]
    pub prefill: usize,
    /// Rounds.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a model or case that is not there.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let scratch = Scratch::new()?;
    let checkpoint = open(args, &scratch.0)?;
    let bench = Bench::new(args, checkpoint, &scratch.0)?;
    print(&bench.header())?;
    for &rows in &args.rows {
        let measured = bench.rounds(rows, |case| bench.decode_rows(rows, case));
        print(&bench.table(&format!("decode, {rows} rows"), rows, &measured))?;
    }
    if args.prefill > 0 {
        let measured = bench.rounds(args.prefill, |case| bench.prefill_rows(args.prefill, case));
        print(&bench.table(&format!("prefill, {} tokens", args.prefill), args.prefill, &measured))?;
    }
    Ok(())
}

/// A folder that goes when the command ends.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self, CliError> {
        let dir = std::env::temp_dir().join(format!("tessera-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)
            .map_err(|e| CliError::General(format!("{} cannot be made: {e}", dir.display())))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(args: &BenchArgs, scratch: &Path) -> Result<Arc<Checkpoint>, CliError> {
    let Some(model) = &args.model else {
        let dir = scratch.join("model");
        let mut shape = args.preset.shape();
        shape.dtype = args.dtype;
        synth_model(&dir, &shape)?;
        return Ok(Arc::new(Checkpoint::open(&dir, None)?));
    };
    base::checkpoint(Some(model), Some(args.dtype))
}

/// One way of giving rows their adapters.
struct Case {
    name: String,
    /// Row i uses slot `slots[i % len]`.
    slots: Vec<Slot>,
    merged: bool,
}

struct Bench<'a> {
    args: &'a BenchArgs,
    checkpoint: Arc<Checkpoint>,
    backend: Cpu,
    model: Model<Cpu>,
    merged: Option<Model<Cpu>>,
    pool: <Cpu as Backend>::Pool,
    cases: Vec<Case>,
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

impl<'a> Bench<'a> {
    fn new(
        args: &'a BenchArgs,
        checkpoint: Arc<Checkpoint>,
        scratch: &Path,
    ) -> Result<Self, CliError> {
        let backend = Cpu::new(args.threads);
        let positions = args.context.max(args.prefill) + 1;
        let model = Model::load(&checkpoint, &backend, positions, &|_| {});
        let rows_max = args.rows.iter().copied().max().unwrap_or(1);
        let mut adapters = Vec::new();
        let cases = args.cases.iter().map(|name| {
            let base = CheckpointBase::new(checkpoint.clone());
            case(name, rows_max, args.rank, base, scratch, &mut adapters)
        });
        let cases: Vec<Case> = cases.collect::<Result<_, _>>()?;
        let mut pool = backend.pool(adapters.len());
        for (slot, adapter) in adapters.iter().enumerate() {
            let written = backend.write_slot(&mut pool, Slot(slot as u32), adapter.delta.clone());
            written.map_err(|e| CliError::General(e.to_string()))?;
        }
        let merged = cases.iter().find(|case| case.merged).map(|case| {
            let mut model = Model::load(&checkpoint, &backend, positions, &|_| {});
            model.fold(&backend, &adapters[case.slots[0].0 as usize].delta);
            model
        });
        let buffer = vec![1u64; BANDWIDTH_BYTES / 8];
        Ok(Self { args, checkpoint, backend, model, merged, pool, cases, buffer })
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

    /// One step of each case and one pure read, round after round.
    fn rounds(&self, width: usize, rows: impl Fn(&Case) -> Rows) -> Measured {
        let tokens = self.args.context.max(self.args.prefill) + 1;
        let blocks = width * tokens.div_ceil(BLOCK_TOKENS);
        let shape = Model::<Cpu>::kv_shape(&self.checkpoint, blocks, BLOCK_TOKENS);
        let mut kv = self.backend.kv(shape);
        let mut measured = Measured { steps: vec![Vec::new(); self.cases.len()], reads: vec![] };
        // The first round only warms caches and is not kept.
        for round in 0..=self.args.rounds {
            let keep = |seconds: f64, times: &mut Vec<f64>| {
                if round > 0 {
                    times.push(seconds);
                }
            };
            keep(self.read(), &mut measured.reads);
            for (case, times) in self.cases.iter().zip(&mut measured.steps) {
                let rows = rows(case);
                let start = Instant::now();
                self.step(case, rows, &mut kv);
                keep(start.elapsed().as_secs_f64(), times);
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

    fn step(&self, case: &Case, rows: Rows, kv: &mut <Cpu as Backend>::Kv) {
        let model = if case.merged { self.merged.as_ref() } else { None }.unwrap_or(&self.model);
        let params = SamplingParams::greedy();
        let sample = SampleRow { params, step: 0, logprobs: None };
        let samples = vec![sample; rows.logit_rows.len()];
        let batch = self.backend.batch(rows);
        let adapters = Adapters { pool: &self.pool };
        let logits = model.forward(&self.backend, &batch, kv, adapters);
        black_box(
            self.backend.sample(&logits, &samples).expect("This is a bug: the CPU has no faults."),
        );
    }

    /// One new token for each of `rows` sequences.
    fn decode_rows(&self, rows: usize, case: &Case) -> Rows {
        let context = self.args.context;
        let blocks = (context + 1).div_ceil(BLOCK_TOKENS);
        let mut step = Rows::default();
        for row in 0..rows {
            step.tokens.push(row as u32 + 1);
            step.positions.push(context as u32);
            step.slots.push(case.slot(row));
            let first = (row * blocks) as u32;
            let block_table = (first..first + blocks as u32).map(BlockId).collect();
            step.spans.push(Span { start: row, len: 1, block_table });
            step.logit_rows.push(row as u32);
        }
        step
    }

    /// One prompt of `tokens`.
    fn prefill_rows(&self, tokens: usize, case: &Case) -> Rows {
        let block_table = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
        Rows {
            tokens: (0..tokens).map(|i| (i % 250) as u32).collect(),
            positions: (0..tokens as u32).collect(),
            slots: vec![case.slot(0); tokens],
            spans: vec![Span { start: 0, len: tokens, block_table }],
            logit_rows: vec![tokens as u32 - 1],
        }
    }

    /// Tokens per second are of the best round; ratios are medians over rounds.
    fn table(&self, title: &str, tokens: usize, measured: &Measured) -> String {
        let weights = self.checkpoint.weight_bytes() as f64;
        let read = median(measured.reads.iter().map(|t| BANDWIDTH_BYTES as f64 / t).collect());
        let mut text = format!("\n{title} (pure read: {:.1} GB/s)\n", read / 1e9);
        text += &format!("{:<10} {:>9} {:>10}", "case", "ms", "tokens/s");
        text += &format!(" {:>8} {:>8} {:>8}\n", "of base", "of one", "of read");
        let of = |name: &str| self.cases.iter().position(|case| case.name == name);
        for (case, times) in self.cases.iter().zip(&measured.steps) {
            let best = times.iter().copied().fold(f64::INFINITY, f64::min);
            let ratio = |other: Option<usize>| match other {
                None => "-".to_owned(),
                Some(other) => {
                    let ratios = measured.steps[other].iter().zip(times).map(|(o, t)| o / t);
                    format!("{:.2}", median(ratios.collect()))
                }
            };
            let shares = measured.reads.iter().zip(times);
            let shares = shares.map(|(read, t)| weights / t / (BANDWIDTH_BYTES as f64 / read));
            text += &format!(
                "{:<10} {:>9.2} {:>10.1} {:>8} {:>8} {:>8.2}\n",
                case.name,
                best * 1e3,
                tokens as f64 / best,
                ratio(of("base")),
                ratio(of("one")),
                median(shares.collect())
            );
        }
        text
    }
}

impl Case {
    fn slot(&self, row: usize) -> Slot {
        self.slots[row % self.slots.len()]
    }
}

fn case(
    name: &str,
    rows: usize,
    rank: usize,
    base: CheckpointBase,
    scratch: &Path,
    adapters: &mut Vec<Arc<Adapter>>,
) -> Result<Case, CliError> {
    use AdapterKind::{Dora, Ia3, Lora, Mos, Ssf};
    let kinds: Vec<AdapterKind> = match name {
        "base" => Vec::new(),
        "one" | "merged" => vec![Lora],
        "distinct" => vec![Lora; rows],
        "mos" => vec![Mos; rows],
        "ssf" => vec![Ssf; rows],
        "ia3" => vec![Ia3; rows],
        "dora" => vec![Dora; rows],
        "mix" => [Lora, Mos, Ssf, Ia3].into_iter().cycle().take(rows).collect(),
        other => {
            let known = "base, one, distinct, mos, ssf, ia3, dora, mix, merged";
            return Err(CliError::Usage(format!("no case '{other}'; known: {known}")));
        }
    };
    let loader =
        Loader { base, limits: FileLimits::new(1 << 32), allow_unknown_config_keys: false };
    let mut slots = Vec::new();
    for kind in kinds {
        let seed = adapters.len() as u64;
        let dir = scratch.join(format!("adapter-{seed}"));
        let dtype = Dtype::F32;
        let shape = AdapterShape { kind, rank, targets: None, shards: 4, dtype, seed };
        synth_adapter(&dir, &shape, &loader.base)?;
        slots.push(Slot(adapters.len() as u32));
        adapters.push(loader.load(&dir, None)?);
        let _ = std::fs::remove_dir_all(&dir);
    }
    let merged = name == "merged";
    if slots.is_empty() {
        slots.push(Slot::BASE);
    }
    Ok(Case { name: name.to_owned(), slots, merged })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
