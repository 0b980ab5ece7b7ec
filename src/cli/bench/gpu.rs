//! Steps on a GPU: checked against the CPU, then timed, beside what the card can copy and multiply.
//!
//! A card is one user's: cases run one after another, each warm and recorded before it is timed,
//! and the base once more at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;

use super::BenchArgs;
use super::cases::{Case, random_adapter};
use super::check;
use super::kernels::{self, KernelLine, Shape};
use super::report::{Line, about, write_json};
use super::steps::{self, BLOCK_TOKENS, median};
use crate::adapter::Adapter;
use crate::backend::cuda::{Ceilings, Cuda, Kv, OpenError, Slots, StepLimits, kv_bytes};
use crate::backend::{Device, Fault, Rows, SlotError};
use crate::cli::device::kernel_cache;
use crate::cli::progress::{counting, loading};
use crate::cli::synth::AdapterKind;
use crate::cli::{CliError, print};
use crate::engine::{Gpu, GpuSettings, LoadedGpu, wait_until_ready};
use crate::ids::Slot;
use crate::model::{Checkpoint, Model};

/// Of the card's memory that is taken.
const MEMORY_SHARE: f64 = 0.95;
/// Of what the weights leave, the KV cache takes no more than this.
const KV_SHARE: f64 = 0.6;
/// Steps before a case is timed: libraries choose, the step is recorded, and its forms are tried.
const WARM_STEPS: usize = 24;
/// Cases whose kernels are timed, at no more rows than this.
const PROFILED: &[&str] = &["base", "eight", "distinct", "mos", "mix"];
const PROFILED_ROWS_MAX: usize = 64;
const KV_TOO_LARGE: &str = "the KV of so many rows does not fit";
/// Rows of the step that is compared with the CPU's.
const CHECKED_ROWS_MAX: usize = 8;
/// A step that differs from the CPU's by more, as a share of its size, is wrong: rounding every
/// activation to bf16 in each of 32 layers adds up to a few hundredths.
const DISTANCE_MAX: f32 = 0.2;

/// Opens the card with the model on it.
///
/// # Errors
/// [`OpenError`].
pub fn open(
    args: &BenchArgs,
    checkpoint: &Arc<Checkpoint>,
    ordinal: usize,
) -> Result<LoadedGpu, OpenError> {
    let rows_max = args.rows.iter().copied().max().unwrap_or(1);
    let limits = StepLimits {
        rows_max: rows_max.max(args.prefill).max(args.context.min(2048)),
        sequences_max: rows_max,
        context_tokens_max: args.context.max(args.prefill) + 1,
        adapter_slots: rows_max,
        recipe_parts_max: 1,
    };
    let (heard, cache) = (|text: &str| tracing::info!("{text}"), kernel_cache());
    let bar = loading(checkpoint.weight_bytes());
    let settings = GpuSettings {
        ordinal,
        limits,
        block_tokens: BLOCK_TOKENS,
        kernel_cache: cache.as_deref(),
        heard: &heard,
        loaded: &|bytes| bar.inc(bytes),
    };
    let opened = LoadedGpu::open(checkpoint, &settings);
    bar.finish_and_clear();
    opened
}

/// Everything that is written as JSON.
#[derive(Serialize)]
struct Results {
    device: String,
    memory_bytes: u64,
    dtype: &'static str,
    weight_bytes: u64,
    context: usize,
    ceilings: Ceilings,
    /// Of the logits of one prompt for each kind of adapter, as a share of their size.
    distance_from_cpu: f32,
    steps: Vec<Line>,
    kernels: Vec<KernelLine>,
}

/// Runs the cases.
///
/// # Errors
/// [`CliError`]: a fault of the card, a step that differs from the CPU's, a file that cannot be
/// written.
pub fn run(
    args: &BenchArgs,
    cases: &[Case],
    checkpoint: Arc<Checkpoint>,
    mut gpu: LoadedGpu,
    scratch: &Path,
) -> Result<(), CliError> {
    let ceilings = gpu.prepare(|cuda, _| cuda.ceilings()).and_then(|measured| measured);
    let ceilings = ceilings.map_err(failed)?;
    let mut bench = Bench::new(args, checkpoint, gpu, ceilings, scratch)?;
    print(&bench.header()?)?;
    let distance = bench.check(cases)?;
    print(&format!("checked: logits differ from the CPU's by {distance:.4} of their size\n"))?;
    bench.fill()?;
    let start = Instant::now();
    for (done, case) in cases.iter().filter(|case| !case.merged).enumerate() {
        if done == 1 {
            let seconds = start.elapsed().as_secs_f64() * (cases.len() - 1) as f64;
            let text = about(seconds, &format!("{} cases more", cases.len() - 1));
            bench.bar.suspend(|| print(&text))?;
        }
        bench.case(case)?;
    }
    for case in cases.iter().filter(|case| case.merged) {
        bench.merged(case)?;
    }
    if let Some(base) = cases.iter().find(|case| case.name == "base") {
        bench.again(base)?;
    }
    bench.bar.finish_and_clear();
    print(&bench.tables())?;
    let Some(path) = &args.json else { return Ok(()) };
    let results = Results {
        device: bench.gpu.backend.describe(),
        memory_bytes: bench.memory().map_err(failed)?.1,
        dtype: bench.checkpoint.dtype.name(),
        weight_bytes: bench.checkpoint.weight_bytes(),
        context: args.context,
        ceilings,
        distance_from_cpu: distance,
        steps: bench.lines,
        kernels: bench.kernels,
    };
    write_json(path, &results)
}

fn failed(fault: Fault) -> CliError {
    CliError::General(fault.message)
}

struct Bench<'a> {
    args: &'a BenchArgs,
    scratch: &'a Path,
    checkpoint: Arc<Checkpoint>,
    gpu: Gpu,
    kv: Kv,
    /// Rows whose KV fits.
    rows_max: usize,
    ceilings: Ceilings,
    lines: Vec<Line>,
    kernels: Vec<KernelLine>,
    /// Of lines.
    bar: ProgressBar,
}

impl<'a> Bench<'a> {
    /// Shares out the card's memory: the KV of as many rows as fit, the rest to adapters.
    fn new(
        args: &'a BenchArgs,
        checkpoint: Arc<Checkpoint>,
        gpu: LoadedGpu,
        ceilings: Ceilings,
        scratch: &'a Path,
    ) -> Result<Self, CliError> {
        let (free, total) = gpu.memory().map_err(failed)?;
        let share = (total as f64 * MEMORY_SHARE) as u64;
        let left = share.saturating_sub(total - free);
        let blocks = |rows: usize| {
            let prompt = steps::pages(args.prefill.max(1));
            (rows * steps::pages(args.context + 1)).max(prompt)
        };
        let shape = |rows| Model::<Cuda>::kv_shape(&checkpoint, blocks(rows), BLOCK_TOKENS);
        let fits = |rows: &usize| kv_bytes(&shape(*rows)) as f64 <= left as f64 * KV_SHARE;
        let rows_max = args.rows.iter().copied().filter(fits).max().ok_or_else(|| {
            CliError::Usage(format!("the KV cache of {:?} rows does not fit the GPU", args.rows))
        })?;
        let adapter_bytes = left - kv_bytes(&shape(rows_max));
        let ready = gpu.ready(&checkpoint, blocks(rows_max), BLOCK_TOKENS, adapter_bytes);
        let gpu = ready.map_err(|e| CliError::Model(e.to_string()))?;
        let kv = gpu.backend.kv(shape(rows_max)).map_err(|e| CliError::Model(e.to_string()))?;
        let (lines, kernels) = (Vec::new(), Vec::new());
        let widths = args.rows.len() + usize::from(args.prefill > 0);
        let bar = counting("measurements", (widths * args.cases.len()) as u64);
        Ok(Self { args, scratch, checkpoint, gpu, kv, rows_max, ceilings, lines, kernels, bar })
    }

    fn memory(&self) -> Result<(u64, u64), Fault> {
        self.gpu.backend.memory()
    }

    fn header(&self) -> Result<String, CliError> {
        let ceilings = &self.ceilings;
        Ok(format!(
            "{}, {} bytes; {} weights {:.2} GB, context {}, rank {}\ncopies {:.0} GB/s (read and \
             written), multiplies {:.1} TFLOP/s\n",
            self.gpu.backend.describe(),
            self.memory().map_err(failed)?.1,
            self.checkpoint.dtype.name(),
            self.checkpoint.weight_bytes() as f64 / 1e9,
            self.args.context,
            self.args.rank,
            ceilings.copy_bytes_per_second / 1e9,
            ceilings.flops_per_second / 1e12,
        ))
    }

    /// One adapter of each of a case's kinds.
    fn random(&self, case: &Case, seed: u64) -> Result<Vec<Arc<Adapter>>, CliError> {
        let one = |(i, &kind)| {
            random_adapter(kind, case.rank, seed + i as u64, &self.checkpoint, self.scratch)
        };
        case.kinds.iter().enumerate().map(one).collect()
    }

    /// Puts `adapters`, in turn, into the first `count` slots: each slot has memory of its own,
    /// whatever is in it.
    fn place(
        &self,
        slots: &mut Slots,
        adapters: &[Arc<Adapter>],
        placed: &mut usize,
        count: usize,
    ) -> Result<(), SlotError> {
        let backend = &self.gpu.backend;
        let first = *placed;
        while *placed < count {
            let delta = adapters[*placed % adapters.len()].delta.clone();
            backend.write_slot(slots, Slot(*placed as u32), delta)?;
            *placed += 1;
        }
        (first..count).try_for_each(|slot| wait_until_ready(backend, slots, Slot(slot as u32)))
    }

    /// Some of the cases' adapters and the base in one step, compared with the CPU's.
    fn check(&mut self, cases: &[Case]) -> Result<f32, CliError> {
        let most = self.rows_max.min(CHECKED_ROWS_MAX) - 1;
        let mut adapters = Vec::new();
        for case in cases.iter().filter(|case| !case.merged) {
            if adapters.len() < most {
                adapters.extend(self.random(case, 1000 + adapters.len() as u64)?);
            }
        }
        adapters.truncate(most);
        let mut slots = self.gpu.backend.slots(adapters.len());
        let placed = self.place(&mut slots, &adapters, &mut 0, adapters.len());
        placed.map_err(|e| CliError::General(e.to_string()))?;
        let rows = check::prompts(adapters.len(), self.args.context);
        let Gpu { backend, model, .. } = &self.gpu;
        let logits = check::logits(backend, model, &mut self.kv, &slots, &rows).map_err(failed)?;
        let distance = check::distance_from_cpu(&self.checkpoint, &adapters, &rows, &logits)?;
        if distance.is_nan() || distance > DISTANCE_MAX {
            return Err(CliError::General(format!(
                "logits on the card differ from the CPU's by {distance} of their size, more than \
                 {DISTANCE_MAX}: nothing is timed"
            )));
        }
        Ok(distance)
    }

    /// Gives every row a context.
    fn fill(&mut self) -> Result<(), CliError> {
        let slots = self.gpu.backend.slots(0);
        let context = self.args.context;
        for row in 0..self.rows_max {
            for start in (0..context).step_by(2048) {
                let tokens = (context - start).min(2048);
                let rows = steps::prompt(row, start, tokens, context + 1, None);
                self.step(&slots, &rows)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, slots: &Slots, rows: &Rows) -> Result<(), CliError> {
        let Gpu { backend, model, .. } = &self.gpu;
        steps::run(backend, model, slots, &mut self.kv, rows).map_err(failed)
    }

    /// Median seconds of a warm step.
    fn time(&mut self, slots: &Slots, warm: usize, rows: &Rows) -> Result<f64, CliError> {
        for _ in 0..warm {
            self.step(slots, rows)?;
        }
        let mut times = Vec::new();
        for _ in 0..self.args.rounds {
            let start = Instant::now();
            self.step(slots, rows)?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(median(times))
    }

    fn keep(
        &mut self,
        phase: &'static str,
        case: &str,
        rows: usize,
        measured: Result<f64, String>,
    ) {
        self.bar.inc(1);
        let ms = measured.as_ref().ok().map(|seconds| seconds * 1e3);
        let is_base = |l: &&Line| l.phase == phase && l.case == "base" && l.rows == rows;
        let base = match case {
            "base" => ms,
            _ => self.lines.iter().find(is_base).and_then(|line| line.ms),
        };
        self.lines.push(Line {
            phase,
            case: case.to_owned(),
            rows,
            ms,
            tokens_per_second: ms.map(|ms| rows as f64 / ms * 1e3),
            of_base: ms.and_then(|ms| Some(base? / ms)),
            note: measured.err(),
        });
    }

    /// All widths of a case that fit.
    fn case(&mut self, case: &Case) -> Result<(), CliError> {
        let adapters = self.random(case, 0)?;
        let (mut slots, mut placed) = (self.gpu.backend.slots(self.rows_max), 0);
        let mut widths = self.args.rows.clone();
        widths.sort_unstable();
        for rows in widths {
            if rows > self.rows_max {
                self.keep("decode", &case.name, rows, Err(KV_TOO_LARGE.into()));
                continue;
            }
            let count = if adapters.is_empty() { 0 } else { case.count(rows).min(self.rows_max) };
            if let Err(error) = self.place(&mut slots, &adapters, &mut placed, count) {
                self.keep("decode", &case.name, rows, Err(error.to_string()));
                continue;
            }
            self.decode(case, &case.name, &slots, rows)?;
        }
        self.prefill(case, &slots, placed)?;
        if PROFILED.contains(&case.name.as_str()) {
            self.profile(case, &slots, placed)?;
        }
        Ok(())
    }

    /// The kernels of a decode step of many rows that have their adapters, and of a prompt.
    fn profile(&mut self, case: &Case, slots: &Slots, placed: usize) -> Result<(), CliError> {
        let (context, prefill) = (self.args.context, self.args.prefill);
        let (most, has_rank) = (PROFILED_ROWS_MAX.min(self.rows_max), has_rank(case));
        let fits = |rows: &usize| *rows <= most && case.count(*rows).min(self.rows_max) <= placed;
        let rows = self.args.rows.iter().copied().filter(fits).max();
        let element_bytes = self.checkpoint.dtype.bytes();
        let rank = if has_rank { case.rank } else { 0 };
        let shape = Shape { rows: 0, context, logits: 1, adapters: 1, rank, element_bytes };
        let slot = |row, rows| case.adapter_of(row, rows).map(|a| Slot(a as u32));
        if let Some(rows) = rows {
            let adapters = case.count(rows).min(rows);
            let shape = Shape { rows, context: context + 1, logits: rows, adapters, ..shape };
            let step = steps::decode(rows, context, |row| slot(row, rows));
            self.profile_step("decode", case, slots, &step, &shape)?;
        }
        if prefill > 0 && case.count(1) <= placed {
            let shape = Shape { rows: prefill, context: prefill.div_ceil(2), ..shape };
            let step = steps::prompt(0, 0, prefill, prefill, slot(0, 1));
            self.profile_step("prefill", case, slots, &step, &shape)?;
        }
        Ok(())
    }

    fn profile_step(
        &mut self,
        phase: &'static str,
        case: &Case,
        slots: &Slots,
        rows: &Rows,
        shape: &Shape,
    ) -> Result<(), CliError> {
        self.step(slots, rows)?;
        let Self { gpu: Gpu { backend, model, .. }, kv, .. } = self;
        let timed = backend.profile(|| steps::run(backend, model, slots, kv, rows));
        let timed = timed.map_err(failed)?;
        let config = &self.checkpoint.config;
        let lines = kernels::lines(phase, &case.name, &timed, config, shape, &self.ceilings);
        let title = format!("{phase} of {} rows, {}", shape.rows, case.name);
        self.bar.suspend(|| print(&kernels::table(&title, &lines)))?;
        self.kernels.extend(lines);
        Ok(())
    }

    fn decode(
        &mut self,
        case: &Case,
        name: &str,
        slots: &Slots,
        rows: usize,
    ) -> Result<(), CliError> {
        let slot = |row| case.adapter_of(row, rows).map(|a| Slot(a as u32));
        let step = steps::decode(rows, self.args.context, slot);
        let seconds = self.time(slots, WARM_STEPS, &step)?;
        self.keep("decode", name, rows, Ok(seconds));
        Ok(())
    }

    fn prefill(&mut self, case: &Case, slots: &Slots, placed: usize) -> Result<(), CliError> {
        let tokens = self.args.prefill;
        if tokens == 0 {
            return Ok(());
        }
        let slot = case.adapter_of(0, 1).filter(|_| placed > 0).map(|_| Slot(0));
        let seconds = self.time(slots, 2, &steps::prompt(0, 0, tokens, tokens, slot))?;
        self.keep("prefill", &case.name, tokens, Ok(seconds));
        Ok(())
    }

    /// Folds the case's adapter into the weights, times, and takes it back: the logits afterwards
    /// must be those before, to the bit.
    fn merged(&mut self, case: &Case) -> Result<(), CliError> {
        let adapter = self.random(case, 0)?.remove(0);
        let rows = check::prompts(0, self.args.context);
        let slots = self.gpu.backend.slots(0);
        let before = check::logits(&self.gpu.backend, &self.gpu.model, &mut self.kv, &slots, &rows);
        self.gpu.model.fold(&self.gpu.backend, &adapter.delta);
        self.gpu.backend.settled().map_err(failed)?;
        for rows in self.args.rows.clone() {
            if rows > self.rows_max {
                self.keep("decode", &case.name, rows, Err(KV_TOO_LARGE.into()));
                continue;
            }
            self.decode(case, &case.name, &slots, rows)?;
        }
        self.prefill(case, &slots, 0)?;
        self.gpu.model.restore(&self.gpu.backend, &self.checkpoint, &adapter.delta)?;
        self.gpu.backend.settled().map_err(failed)?;
        let after = check::logits(&self.gpu.backend, &self.gpu.model, &mut self.kv, &slots, &rows);
        if before.map_err(failed)? != after.map_err(failed)? {
            let text = "the base's logits changed when a merged adapter was taken back";
            return Err(CliError::General(text.into()));
        }
        Ok(())
    }

    /// The base's widest step once more: has the card slowed down meanwhile?
    fn again(&mut self, base: &Case) -> Result<(), CliError> {
        let slots = self.gpu.backend.slots(0);
        self.decode(base, "base, again", &slots, self.rows_max)
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        let mut widths: Vec<_> = self.lines.iter().map(|line| (line.phase, line.rows)).collect();
        widths.sort_unstable();
        widths.dedup();
        for (phase, rows) in widths {
            text += &format!("\n{phase}, {rows} rows\n{:<14}", "case");
            text += &format!("{:>9} {:>10} {:>8}\n", "ms", "tokens/s", "of base");
            for line in self.lines.iter().filter(|l| (l.phase, l.rows) == (phase, rows)) {
                text += &format!("{:<14}", line.case);
                text += &match (line.ms, line.tokens_per_second, &line.note) {
                    (Some(ms), Some(rate), _) => {
                        let ratio = line.of_base.map_or("-".into(), |r| format!("{r:.3}"));
                        format!("{ms:>9.3} {rate:>10.1} {ratio:>8}\n")
                    }
                    (.., note) => format!("  {}\n", note.as_deref().unwrap_or("not measured")),
                };
            }
        }
        text
    }
}

/// Whether its adapters have factors.
fn has_rank(case: &Case) -> bool {
    !case.idle && case.kinds.iter().any(|kind| !matches!(kind, AdapterKind::Ssf | AdapterKind::Ia3))
}
