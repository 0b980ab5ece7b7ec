//! `tessera bench`: prefill and decode steps, in this process, against rows, adapters and kinds.

mod cases;
mod check;
mod cpu;
mod gpu;
mod kernels;
mod report;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use self::cases::Case;
pub use self::report::write_json;
use super::progress::waiting;
use super::synth::{Preset, synth_model};
use super::{CliError, base, parse_dtype};
use crate::backend::cuda::OpenError;
use crate::config::{Device, ROWS_MAX, THREADS_MAX, TOKENS_MAX, count_to, parse_device};
use crate::dtype::Dtype;
use crate::model::Checkpoint;

/// Flags of `tessera bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Model directory or Hub id; default: random weights of --preset's shape.
    pub model: Option<String>,
    /// Shape of the random model.
    #[arg(long, value_enum, default_value = "403m", help_heading = "Model")]
    pub preset: Preset,
    /// Width of the weights: f32, f16 or bf16.
    #[arg(long, default_value = "bf16", value_parser = parse_dtype, help_heading = "Model")]
    pub dtype: Dtype,
    /// Where steps run: auto (a GPU if there is one that can be used), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = parse_device, help_heading = "Device")]
    pub device: Device,
    /// Threads that compute, on the CPU.
    #[arg(
        long,
        default_value = "2",
        value_parser = count_to(THREADS_MAX),
        help_heading = "Device"
    )]
    pub threads: usize,
    /// Rows of a decode step.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,4,8,16",
        value_parser = count_to(ROWS_MAX),
        help_heading = "Steps"
    )]
    pub rows: Vec<usize>,
    /// Cases: base, idle, one, eight, distinct, mos, ssf, ia3, dora, mix, merged; one@64 has rank
    /// 64 whatever --rank says.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "base,one,distinct,mos,mix",
        help_heading = "Steps"
    )]
    pub cases: Vec<String>,
    /// Rank of the adapters.
    #[arg(long, default_value = "16", value_parser = count_to(ROWS_MAX), help_heading = "Steps")]
    pub rank: usize,
    /// Tokens that each row attends to.
    #[arg(long, default_value = "128", value_parser = count_to(TOKENS_MAX), help_heading = "Steps")]
    pub context: usize,
    /// Tokens of one prefill step; 0 leaves prefill out.
    #[arg(
        long,
        default_value = "256",
        value_parser = parse_prefill,
        help_heading = "Steps"
    )]
    pub prefill: usize,
    /// Rounds.
    #[arg(long, default_value = "7", value_parser = count_to(ROUNDS_MAX), help_heading = "Steps")]
    pub rounds: usize,
    /// Also write the results here, as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// More than anybody waits for.
const ROUNDS_MAX: usize = 10_000;

fn parse_prefill(text: &str) -> Result<usize, String> {
    if text == "0" { Ok(0) } else { count_to(TOKENS_MAX)(text) }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a model, device or case that is not there.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let cases = args.cases.iter().map(|name| Case::parse(name, args.rank));
    let cases: Vec<Case> = cases.collect::<Result<_, _>>()?;
    let scratch = Scratch::new()?;
    let checkpoint = open(args, &scratch.0)?;
    let ordinal = match args.device {
        Device::Cpu => return cpu::run(args, &cases, checkpoint, &scratch.0),
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    match gpu::open(args, &checkpoint, ordinal) {
        Ok(gpu) => gpu::run(args, &cases, checkpoint, gpu, &scratch.0),
        Err(error @ OpenError::Memory { .. }) => Err(CliError::Model(error.to_string())),
        Err(_) if args.device == Device::Auto => cpu::run(args, &cases, checkpoint, &scratch.0),
        Err(error) => Err(CliError::Usage(format!("--device cuda: {error}"))),
    }
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
        let bar = waiting("writing a model of random weights");
        let written = synth_model(&dir, &shape);
        bar.finish_and_clear();
        written?;
        return Ok(Arc::new(Checkpoint::open(&dir, None)?));
    };
    base::checkpoint(Some(model), Some(args.dtype))
}
