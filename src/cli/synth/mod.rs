//! `tessera synth`: models and adapters with random weights of sensible scale, in the formats of
//! real ones.

mod adapter;
mod model;
mod tokenizer;
mod writer;

pub use adapter::{AdapterKind, AdapterShape, synth_adapter};
pub use model::{Family, ModelShape, SHARD_BYTES_MAX, synth_model};

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::base;
use super::progress::waiting;
use super::{CliError, at, parse_dtype, print};
use crate::config::{ROWS_MAX, count_to, whole};
use crate::dtype::Dtype;
use crate::engine::CheckpointBase;

/// Of anything that a model has some of.
const SIZE_MAX: usize = 1 << 24;

/// `tessera synth`.
#[derive(Args, Debug)]
pub struct SynthArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A model directory: config.json, weights, tokenizer, chat template.
    Model(ModelArgs),
    /// An adapter directory, for a given model.
    Adapter(AdapterArgs),
}

/// Shapes that performance is measured with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Preset {
    /// 403 M parameters: 8 layers, hidden 2048, vocabulary 4096.
    #[value(name = "403m")]
    M403,
    /// The shape of Llama 3 8B.
    #[value(name = "8b")]
    B8,
}

#[derive(Args, Debug)]
struct ModelArgs {
    /// The directory to write; it must not hold anything yet.
    dir: PathBuf,
    /// Take the shape from here; the flags below change it.
    #[arg(long)]
    preset: Option<Preset>,
    /// Decoder layers.
    #[arg(long, required_unless_present = "preset", value_parser = count_to(SIZE_MAX))]
    layers: Option<usize>,
    /// Width of the residual stream.
    #[arg(long, required_unless_present = "preset", value_parser = count_to(SIZE_MAX))]
    hidden: Option<usize>,
    /// Width inside the MLP.
    #[arg(long, required_unless_present = "preset", value_parser = count_to(SIZE_MAX))]
    intermediate: Option<usize>,
    /// Query heads.
    #[arg(long, required_unless_present = "preset", value_parser = count_to(SIZE_MAX))]
    heads: Option<usize>,
    /// Key/value heads [default: the preset's, or as many as --heads].
    #[arg(long, value_parser = count_to(SIZE_MAX))]
    kv_heads: Option<usize>,
    /// Tokens; at least 263, for the bytes and the special ones.
    #[arg(long, required_unless_present = "preset", value_parser = count_to(SIZE_MAX))]
    vocab: Option<usize>,
    /// Width of a head [default: hidden / heads].
    #[arg(long, value_parser = count_to(SIZE_MAX))]
    head_dim: Option<usize>,
    /// Width of the weights: f32, f16 or bf16.
    #[arg(long, default_value = "bf16", value_parser = parse_dtype)]
    dtype: Dtype,
    /// Architecture.
    #[arg(long, default_value = "llama")]
    family: Family,
    /// The head is the embedding.
    #[arg(long)]
    tied: bool,
    /// Equal seeds give equal files.
    #[arg(long, default_value_t = 0, value_parser = whole(0, u64::MAX))]
    seed: u64,
}

#[derive(Args, Debug)]
struct AdapterArgs {
    /// The directory to write; it must not hold anything yet.
    dir: PathBuf,
    /// The model that it is for: a directory or a Hub id.
    #[arg(long)]
    model: String,
    /// Method.
    #[arg(long)]
    kind: AdapterKind,
    /// Rank, where the method has one.
    #[arg(long, default_value_t = 16, value_parser = count_to(ROWS_MAX))]
    rank: usize,
    /// `all`, or module names with commas between: q_proj,v_proj. For IA3, all means
    /// k_proj,v_proj,down_proj, as in its paper.
    #[arg(long, default_value = "all")]
    targets: String,
    /// MoS: shards in a row.
    #[arg(long, default_value_t = 4, value_parser = count_to(ROWS_MAX))]
    shards: usize,
    /// Width of the tensors: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    dtype: Dtype,
    /// Equal seeds give equal files.
    #[arg(long, default_value_t = 0, value_parser = whole(0, u64::MAX))]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a shape that cannot be, a directory in use, a model that cannot be read.
pub fn run(args: &SynthArgs) -> Result<(), CliError> {
    let dir = match &args.what {
        What::Model(args) => {
            let bar = waiting("writing random weights");
            let written = synth_model(&args.dir, &args.shape());
            bar.finish_and_clear();
            written?;
            &args.dir
        }
        What::Adapter(args) => {
            let base = CheckpointBase::new(base::checkpoint(Some(&args.model), None)?);
            synth_adapter(&args.dir, &args.shape(), &base)?;
            &args.dir
        }
    };
    print(&format!("{}\n", dir.display()))
}

impl Preset {
    /// The numbers behind the name, bf16.
    pub fn shape(self) -> ModelShape {
        let (layers, hidden, intermediate, heads, kv_heads, vocabulary) = match self {
            Preset::M403 => (8, 2048, 6144, 16, 4, 4096),
            Preset::B8 => (32, 4096, 14336, 32, 8, 128_256),
        };
        ModelShape {
            family: Family::Llama,
            layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim: hidden / heads,
            vocabulary,
            dtype: Dtype::BF16,
            tied: false,
            seed: 0,
            shard_bytes_max: SHARD_BYTES_MAX,
        }
    }
}

impl ModelArgs {
    fn shape(&self) -> ModelShape {
        let preset = self.preset.map(Preset::shape);
        // clap has seen to it that a flag is there where the preset is not.
        let pick = |flag: Option<usize>, part: fn(&ModelShape) -> usize| {
            flag.or_else(|| preset.as_ref().map(part)).unwrap_or(0)
        };
        let hidden = pick(self.hidden, |shape| shape.hidden);
        let heads = pick(self.heads, |shape| shape.heads);
        let kv_heads = self.kv_heads.or(self.heads);
        ModelShape {
            family: self.family,
            layers: pick(self.layers, |shape| shape.layers),
            hidden,
            intermediate: pick(self.intermediate, |shape| shape.intermediate),
            heads,
            kv_heads: pick(kv_heads, |shape| shape.kv_heads),
            head_dim: self.head_dim.unwrap_or_else(|| hidden / heads.max(1)),
            vocabulary: pick(self.vocab, |shape| shape.vocabulary),
            dtype: self.dtype,
            tied: self.tied,
            seed: self.seed,
            shard_bytes_max: SHARD_BYTES_MAX,
        }
    }
}

impl AdapterArgs {
    fn shape(&self) -> AdapterShape {
        let names = || self.targets.split(',').map(|name| name.trim().to_owned()).collect();
        AdapterShape {
            kind: self.kind,
            rank: self.rank,
            targets: (self.targets != "all").then(names),
            shards: self.shards,
            dtype: self.dtype,
            seed: self.seed,
        }
    }
}

/// Makes `dir`, which must not hold anything: a model written over another would be lost.
fn new_dir(dir: &Path) -> Result<(), CliError> {
    fs::create_dir_all(dir).map_err(|error| at(dir, &error))?;
    let used = fs::read_dir(dir).map_err(|error| at(dir, &error))?.next().is_some();
    match used {
        true => Err(CliError::Usage(format!(
            "{} is not empty; name a directory that does not exist yet",
            dir.display()
        ))),
        false => Ok(()),
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), CliError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| at(path, &error))
}
