//! Flags, environment and file → what each module is given. A flag beats the environment, which
//! beats the file, which beats the default.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, ValueEnum};

use crate::dtype::Dtype;
use crate::http::{ReasoningParser, ToolCallParser};

mod access;
mod file;
mod log;
mod network;
mod print;
mod values;

pub use access::{AccessConfig, Secret};
pub use file::with_file;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use network::NetworkConfig;
pub use print::{FromFile, describe};
pub use values::{
    CONCURRENCY_MAX, NamedPlace, ROWS_MAX, THREADS_MAX, TOKENS_MAX, count_to, parse_bytes,
    parse_port, parse_seconds, whole,
};
use values::{QUEUE_MAX, parse_adapter, parse_host, parse_share};

/// Settings of `tessera serve`. Each is a flag, an environment variable and a key of the TOML file.
#[derive(Args, Clone, Debug)]
pub struct ServeConfig {
    /// Hugging Face model directory, or Hub id (organisation/name). Without one: the built-in demo.
    #[arg(env = "TESSERA_MODEL")]
    pub model: Option<String>,

    /// Read settings from this TOML file; its keys are the long flag names.
    #[arg(long, env = "TESSERA_CONFIG", value_name = "FILE", help_heading = "General")]
    pub config: Option<PathBuf>,

    /// Print every setting, its value and where it comes from, as a file for --config, and exit.
    #[arg(long, help_heading = "General")]
    pub print_config: bool,

    /// Serve the adapter in a directory or Hub repository under this name. Repeatable.
    #[arg(
        long = "adapter",
        env = "TESSERA_ADAPTER",
        value_name = "NAME=DIR_OR_ID",
        value_parser = parse_adapter,
        action = ArgAction::Append,
        help_heading = "Adapters"
    )]
    pub adapter: Vec<NamedPlace>,

    /// Fold this adapter into the weights and serve it alone (single tenant, no per-row work).
    #[arg(long, env = "TESSERA_MERGE", value_name = "NAME", help_heading = "Adapters")]
    pub merge: Option<String>,

    /// Start without the adapters that cannot be served, instead of not at all.
    #[arg(
        long,
        env = "TESSERA_SKIP_BAD_ADAPTERS",
        value_parser = BoolishValueParser::new(),
        help_heading = "Adapters"
    )]
    pub skip_bad_adapters: bool,

    /// Serve an adapter although its config sets fields that are not known here.
    #[arg(
        long,
        env = "TESSERA_ALLOW_UNKNOWN_CONFIG_KEYS",
        value_parser = BoolishValueParser::new(),
        help_heading = "Adapters"
    )]
    pub allow_unknown_config_keys: bool,

    /// Whose tokenizer, chat template, end of turn and sampling defaults an adapter's name has: own
    /// (those in its directory, where it has any) or base.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_TEMPLATE",
        value_name = "WHOSE",
        default_value = "own",
        help_heading = "Adapters"
    )]
    pub adapter_template: AdapterTemplate,

    /// Where sampling defaults come from: auto (the model's generation_config.json), vllm (none) or
    /// a directory with such a file.
    #[arg(
        long,
        env = "TESSERA_GENERATION_CONFIG",
        value_name = "auto|vllm|DIR",
        default_value = "auto",
        value_parser = parse_generation_config,
        help_heading = "Engine"
    )]
    pub generation_config: GenerationConfig,

    /// Offer POST /v1/load_lora_adapter and /v1/unload_lora_adapter.
    #[arg(
        long,
        env = "TESSERA_ALLOW_RUNTIME_ADAPTERS",
        value_parser = BoolishValueParser::new(),
        requires = "adapter_root",
        help_heading = "Adapters"
    )]
    pub allow_runtime_adapters: bool,

    /// Adapters loaded at run time must lie beneath this directory.
    #[arg(long, env = "TESSERA_ADAPTER_ROOT", value_name = "DIR", help_heading = "Adapters")]
    pub adapter_root: Option<PathBuf>,

    /// Memory for loaded adapters; at the limit a further load is refused.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_HOST_BYTES",
        value_name = "BYTES",
        default_value = "8GiB",
        value_parser = parse_bytes,
        help_heading = "Adapters"
    )]
    pub adapter_host_bytes: u64,

    /// Largest adapter file that is read.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_FILE_BYTES",
        value_name = "BYTES",
        default_value = "4GiB",
        value_parser = parse_bytes,
        help_heading = "Adapters"
    )]
    pub adapter_file_bytes: u64,

    /// Largest rank of an adapter's change at a module; each step takes as long as the largest
    /// needs.
    #[arg(
        long,
        env = "TESSERA_MAX_ADAPTER_RANK",
        value_name = "RANK",
        default_value = "1024",
        value_parser = count_to(ROWS_MAX),
        help_heading = "Adapters"
    )]
    pub max_adapter_rank: usize,

    /// Distinct adapters in one batch; requests for further ones wait for a place. Default: 64, and
    /// 256 on a GPU.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_SLOTS",
        value_name = "N",
        value_parser = count_to(ROWS_MAX),
        help_heading = "Adapters"
    )]
    pub adapter_slots: Option<usize>,

    /// GPU memory for resident adapters; others wait on the host. Default: an eighth of what the
    /// weights leave, or as much as all adapters take that there can be.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_GPU_BYTES",
        value_name = "BYTES",
        value_parser = parse_bytes,
        help_heading = "Adapters"
    )]
    pub adapter_gpu_bytes: Option<u64>,

    /// Address to listen on.
    #[arg(
        long,
        env = "TESSERA_HOST",
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: String,

    /// Port to listen on.
    #[arg(
        long,
        env = "TESSERA_PORT",
        value_name = "PORT",
        default_value = "8000",
        value_parser = parse_port,
        help_heading = "Server"
    )]
    pub port: u16,

    /// Accept requests for this Host header beside the address's own. Repeatable.
    #[arg(
        long = "allowed-host",
        env = "TESSERA_ALLOWED_HOST",
        value_name = "NAME",
        value_parser = parse_host,
        action = ArgAction::Append,
        help_heading = "Server"
    )]
    pub allowed_host: Vec<String>,

    /// Who is heard, and how.
    #[command(flatten)]
    pub network: NetworkConfig,

    /// Who may use it.
    #[command(flatten)]
    pub access: AccessConfig,

    /// What it logs.
    #[command(flatten)]
    pub log: LogConfig,

    /// Name of the base model in requests and replies; default: the directory's name or Hub id.
    #[arg(long, env = "TESSERA_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Server")]
    pub served_model_name: Option<String>,

    /// Answer requests with a field that nobody knows with a 400. Default: it is counted, left
    /// unread and named once in the log.
    #[arg(
        long,
        env = "TESSERA_STRICT_FIELDS",
        value_parser = BoolishValueParser::new(),
        help_heading = "Server"
    )]
    pub strict_fields: bool,

    /// How calls of tools are found in answers: auto (as the model's chat template writes them),
    /// none (not at all), json, llama3_json, hermes, mistral, mistral_args, pythonic, qwen3_coder,
    /// qwen3_xml, glm45, granite, phi4_mini_json, deepseek_v3 or deepseek_v31.
    #[arg(
        long,
        env = "TESSERA_TOOL_CALL_PARSER",
        value_name = "NAME",
        default_value = "auto",
        value_parser = ToolCallParser::parse,
        help_heading = "Server"
    )]
    pub tool_call_parser: ToolCallParser,

    /// How thoughts are told apart from answers: auto (as the model's chat template marks them),
    /// none (not at all), deepseek_r1, deepseek_v3, glm45, granite, minimax_m2, mistral, olmo3,
    /// qwen3, seed_oss or step3.
    #[arg(
        long,
        env = "TESSERA_REASONING_PARSER",
        value_name = "NAME",
        default_value = "auto",
        value_parser = ReasoningParser::parse,
        help_heading = "Server"
    )]
    pub reasoning_parser: ReasoningParser,

    /// Requests that wait beyond those that run; more are answered 429.
    #[arg(
        long,
        env = "TESSERA_QUEUE_REQUESTS",
        value_name = "N",
        default_value = "512",
        value_parser = count_to(QUEUE_MAX),
        help_heading = "Server"
    )]
    pub queue_requests: usize,

    /// Seconds that SIGTERM leaves to requests in flight.
    #[arg(
        long,
        env = "TESSERA_DRAIN_SECONDS",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = parse_seconds,
        help_heading = "Server"
    )]
    pub drain_seconds: u64,

    /// A step that takes longer makes /health and /ready answer 503, until it ends.
    #[arg(
        long,
        env = "TESSERA_STEP_SECONDS_MAX",
        value_name = "SECONDS",
        default_value = "300",
        value_parser = parse_seconds,
        help_heading = "Server"
    )]
    pub step_seconds_max: u64,

    /// Where the model runs: auto (a GPU if there is one that can be used), cpu, cuda or cuda:N.
    #[arg(
        long,
        env = "TESSERA_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        value_parser = parse_device,
        help_heading = "Engine"
    )]
    pub device: Device,

    /// Share of the GPU's memory that is taken at most; what the weights, a step and the adapters
    /// leave of it is the KV cache, as far as sequences can use it.
    #[arg(
        long,
        env = "TESSERA_GPU_MEMORY_UTILIZATION",
        value_name = "SHARE",
        default_value = "0.9",
        value_parser = parse_share,
        help_heading = "Engine"
    )]
    pub gpu_memory_utilization: f64,

    /// Folder where kernels compiled for the GPU are kept; default: tessera/kernels in the user's
    /// cache folder.
    #[arg(long, env = "TESSERA_KERNEL_CACHE", value_name = "DIR", help_heading = "Engine")]
    pub kernel_cache: Option<PathBuf>,

    /// Width weights are kept in: auto (the file's), f32, f16 or bf16.
    #[arg(
        long,
        env = "TESSERA_DTYPE",
        value_name = "DTYPE",
        default_value = "auto",
        value_parser = parse_dtype,
        help_heading = "Engine"
    )]
    pub dtype: AutoDtype,

    /// Threads that compute; default: the cores available.
    #[arg(
        long,
        env = "TESSERA_THREADS",
        value_name = "N",
        value_parser = count_to(THREADS_MAX),
        help_heading = "Engine"
    )]
    pub threads: Option<usize>,

    /// Longest prompt plus completion, in tokens; default: what the model was trained for, or what
    /// fits the KV cache.
    #[arg(
        long,
        env = "TESSERA_MAX_MODEL_LEN",
        value_name = "TOKENS",
        value_parser = count_to(TOKENS_MAX),
        help_heading = "Engine"
    )]
    pub max_model_len: Option<usize>,

    /// Sequences that run at once. Default: 64, and 256 on a GPU.
    #[arg(
        long,
        env = "TESSERA_MAX_NUM_SEQS",
        value_name = "N",
        value_parser = count_to(ROWS_MAX),
        help_heading = "Engine"
    )]
    pub max_num_seqs: Option<usize>,

    /// Tokens of one step over all sequences; longer prompts run in chunks. Default: 512, and 2048
    /// on a GPU.
    #[arg(
        long,
        env = "TESSERA_MAX_NUM_BATCHED_TOKENS",
        value_name = "TOKENS",
        value_parser = count_to(TOKENS_MAX),
        help_heading = "Engine"
    )]
    pub max_num_batched_tokens: Option<usize>,

    /// Memory for the KV cache, e.g. 4GiB; default: enough for every sequence at full length, and
    /// at most a quarter of the memory available; on a GPU, see --gpu-memory-utilization.
    #[arg(
        long,
        env = "TESSERA_KV_CACHE_BYTES",
        value_name = "BYTES",
        value_parser = parse_bytes,
        help_heading = "Engine"
    )]
    pub kv_cache_bytes: Option<u64>,

    /// Compute every prompt anew instead of reusing the KV of equal beginnings.
    #[arg(
        long,
        env = "TESSERA_NO_PREFIX_CACHE",
        value_parser = BoolishValueParser::new(),
        help_heading = "Engine"
    )]
    pub no_prefix_cache: bool,
}

/// `--adapter-template`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AdapterTemplate {
    /// What its directory holds.
    Own,
    /// What the base's holds.
    Base,
}

/// `--generation-config`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GenerationConfig {
    /// The model's file, where it has one.
    Auto,
    /// No defaults, as vLLM spells it.
    Vllm,
    /// The file in this directory.
    Dir(PathBuf),
}

fn parse_generation_config(text: &str) -> Result<GenerationConfig, String> {
    match text {
        "" => Err("expected auto, vllm or a directory".into()),
        "auto" => Ok(GenerationConfig::Auto),
        "vllm" => Ok(GenerationConfig::Vllm),
        dir => Ok(GenerationConfig::Dir(dir.into())),
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Device {
    /// The first GPU if one can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU, as `CUDA_VISIBLE_DEVICES` counts them, or none.
    Cuda(usize),
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// The names that are known.
pub fn parse_device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Some(Device::Auto),
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        other => {
            let number = other.strip_prefix("cuda:").and_then(|number| number.parse::<u16>().ok());
            number.map(|number| Device::Cuda(number.into()))
        }
    }
    .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".into())
}

/// `--dtype`: `None` is auto.
pub type AutoDtype = Option<Dtype>;

/// `auto`, `f32`, `f16` or `bf16`, also in torch's spelling.
///
/// # Errors
/// The names that are known.
pub fn parse_dtype(text: &str) -> Result<AutoDtype, String> {
    match text {
        "auto" => Ok(None),
        "float" => Ok(Some(Dtype::F32)),
        "half" => Ok(Some(Dtype::F16)),
        name => match Dtype::from_name(name) {
            None => Err("expected auto, f32, f16 or bf16".into()),
            known => Ok(known),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_with_or_without_a_number() {
        assert_eq!(parse_device("cuda"), Ok(Device::Cuda(0)));
        assert_eq!(parse_device("cuda:3"), Ok(Device::Cuda(3)));
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda:99999999", "CPU", ""] {
            assert!(parse_device(bad).is_err(), "{bad}");
        }
    }
}
