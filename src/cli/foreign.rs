//! Flags that people know from other servers, and what is written here instead.

/// A flag of another server, in all of its spellings.
pub struct Foreign {
    /// Whose it is.
    pub of: &'static str,
    /// Its spellings.
    pub names: &'static [&'static str],
    /// What to do, as a sentence goes on after the flag's name.
    pub instead: &'static str,
}

const fn row(of: &'static str, names: &'static [&'static str], instead: &'static str) -> Foreign {
    Foreign { of, names, instead }
}

const VLLM: &str = "vLLM";
const SGLANG: &str = "SGLang";
const LORAX: &str = "LoRAX";
const LLAMA: &str = "llama-server";
const MANY: &str = "several servers";

const MODEL: &str = "write the model without a flag: tessera serve MODEL";
const ADAPTER: &str = "write --adapter NAME=DIR_OR_ID, once for each adapter";
const SLOTS: &str = "write --adapter-slots N";
const ONE_DEVICE: &str =
    "there is none: a process computes on one device; start one for each GPU, with --device cuda:N";
const WIDTHS: &str =
    "there is none: weights are kept as f32, f16 or bf16; --dtype chooses, default the file's";
const CONTEXT: &str = "write --max-model-len TOKENS";
const STEP: &str = "write --max-num-batched-tokens TOKENS";
const SEQUENCES: &str = "write --max-num-seqs N";
const ALWAYS: &str = "leave it out: it is always so here";
const NO_DRAFTS: &str = "there is none: drafting tokens ahead is not built";

/// Every flag that is told apart. `docs/configuration.md` has the same table.
pub const FOREIGN: &[Foreign] = &[
    row(MANY, &["--model", "-m"], MODEL),
    row(SGLANG, &["--model-path"], MODEL),
    row(LORAX, &["--model-id"], MODEL),
    row(
        LLAMA,
        &["--hf-repo", "-hf", "-hfr"],
        "write the model's Hub id without a flag: tessera serve ORG/NAME",
    ),
    row(VLLM, &["--lora-modules"], ADAPTER),
    row(SGLANG, &["--lora-paths"], ADAPTER),
    row(LORAX, &["--adapter-id"], ADAPTER),
    row(LLAMA, &["--lora"], "write --adapter NAME=DIR: a directory with safetensors, no GGUF file"),
    row(
        LLAMA,
        &["--lora-scaled"],
        "write --adapter NAME=DIR: an adapter has the scale that its files say",
    ),
    row(LLAMA, &["--lora-init-without-apply"], "leave it out: a request names its adapter"),
    row(
        MANY,
        &["--enable-lora"],
        "leave it out: adapters are always served; name them with --adapter NAME=DIR_OR_ID",
    ),
    row(VLLM, &["--max-loras"], SLOTS),
    row(SGLANG, &["--max-loras-per-batch"], SLOTS),
    row(LORAX, &["--max-active-adapters"], SLOTS),
    row(VLLM, &["--max-cpu-loras"], "write --adapter-host-bytes BYTES: memory bounds them"),
    row(SGLANG, &["--max-loaded-loras"], "write --adapter-host-bytes BYTES: memory bounds them"),
    row(MANY, &["--max-lora-rank"], "write --max-adapter-rank RANK, or leave it out: 1024"),
    row(
        VLLM,
        &["--lora-dtype", "--fully-sharded-loras", "--lora-extra-vocab-size"],
        "leave it out: each adapter is read as its files say",
    ),
    row(SGLANG, &["--lora-backend", "--lora-target-modules"], "leave it out"),
    row(VLLM, &["--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"], ONE_DEVICE),
    row(VLLM, &["--data-parallel-size", "-dp"], ONE_DEVICE),
    row(SGLANG, &["--tp", "--tp-size", "--dp", "--dp-size"], ONE_DEVICE),
    row(LORAX, &["--sharded", "--num-shard"], ONE_DEVICE),
    row(LLAMA, &["--tensor-split", "-ts", "--split-mode", "-sm"], ONE_DEVICE),
    row(
        LLAMA,
        &["--gpu-layers", "--n-gpu-layers", "-ngl"],
        "write --device cuda (the default where there is a GPU) or --device cpu: all layers are \
         on one device",
    ),
    row(MANY, &["--quantization", "-q", "--quantize"], WIDTHS),
    row(VLLM, &["--kv-cache-dtype"], "there is none: the KV cache has the width of the weights"),
    row(
        LLAMA,
        &["--cache-type-k", "-ctk", "--cache-type-v", "-ctv"],
        "there is none: the KV cache has the width of the weights",
    ),
    row(LLAMA, &["--ctx-size", "-c"], CONTEXT),
    row(SGLANG, &["--context-length"], CONTEXT),
    row(LORAX, &["--max-total-tokens", "--max-input-length"], CONTEXT),
    row(LLAMA, &["--parallel", "-np"], SEQUENCES),
    row(SGLANG, &["--max-running-requests"], SEQUENCES),
    row(LLAMA, &["--batch-size", "-b", "--ubatch-size", "-ub"], STEP),
    row(SGLANG, &["--chunked-prefill-size"], STEP),
    row(LORAX, &["--max-batch-prefill-tokens"], STEP),
    row(LORAX, &["--max-batch-total-tokens"], "write --kv-cache-bytes BYTES"),
    row(LORAX, &["--max-concurrent-requests"], "write --queue-requests N"),
    row(SGLANG, &["--mem-fraction-static"], "write --gpu-memory-utilization SHARE"),
    row(VLLM, &["--swap-space", "--cpu-offload-gb"], "there is none: nothing is swapped out"),
    row(VLLM, &["--block-size"], "there is none: a block of the KV cache has 16 tokens"),
    row(VLLM, &["--enable-prefix-caching", "--enable-chunked-prefill"], ALWAYS),
    row(VLLM, &["--no-enable-prefix-caching"], "write --no-prefix-cache"),
    row(SGLANG, &["--disable-radix-cache"], "write --no-prefix-cache"),
    row(VLLM, &["--enforce-eager"], "leave it out: it is decided by measuring"),
    row(VLLM, &["--speculative-config"], NO_DRAFTS),
    row(LLAMA, &["--model-draft", "-md"], NO_DRAFTS),
    row(LLAMA, &["--threads-batch", "-tb", "-t"], "write --threads N"),
    row(LLAMA, &["--flash-attn", "-fa", "--cont-batching", "-cb", "--jinja"], ALWAYS),
    row(LLAMA, &["--metrics", "--embedding", "--embeddings", "--slots", "--props"], ALWAYS),
    row(LLAMA, &["--mlock", "--no-mmap"], "leave it out"),
    row(LLAMA, &["--reranking", "--rerank"], "there is none: it takes another kind of model"),
    row(LLAMA, &["--grammar", "--json-schema"], "each request says it: see docs/api.md"),
    row(LLAMA, &["--alias", "-a"], "write --served-model-name NAME"),
    row(LLAMA, &["--api-key-file"], "write --keys FILE, a TOML file: see docs/api.md"),
    row(LLAMA, &["--ssl-key-file"], "write --ssl-keyfile FILE"),
    row(LLAMA, &["--ssl-cert-file"], "write --ssl-certfile FILE"),
    row(VLLM, &["--trust-remote-code"], "leave it out: no code of a model is ever run"),
    row(
        VLLM,
        &["--tokenizer", "--tokenizer-mode", "--skip-tokenizer-init"],
        "there is none: the tokenizer is that of the model's directory",
    ),
    row(
        MANY,
        &["--chat-template"],
        "there is none: put chat_template.jinja into the model's or the adapter's directory",
    ),
    row(MANY, &["--revision"], "write it behind the Hub id: tessera serve ORG/NAME@REVISION"),
    row(MANY, &["--download-dir"], "set HF_HOME, or HF_HUB_CACHE, in the environment"),
    row(MANY, &["--hf-token"], "set HF_TOKEN in the environment"),
    row(VLLM, &["--load-format"], "leave it out: weights are safetensors"),
    row(VLLM, &["--enable-auto-tool-choice"], "leave it out: see --tool-call-parser"),
    row(VLLM, &["--enable-reasoning"], "leave it out: see --reasoning-parser"),
    row(
        VLLM,
        &["--guided-decoding-backend", "--structured-outputs-config"],
        "leave it out: structured output is always there",
    ),
    row(VLLM, &["--disable-log-requests"], "write --no-access-log"),
    row(VLLM, &["--disable-log-stats"], "leave it out: numbers are in /metrics alone"),
    row(VLLM, &["--uvicorn-log-level"], "write --log-level LEVEL"),
    row(VLLM, &["--allowed-origins"], "write --allowed-origin ORIGIN, once for each"),
    row(VLLM, &["--root-path"], "there is none: a proxy that adds a path must take it off again"),
    row(
        LLAMA,
        &["--chat-template-file"],
        "put it into the model's directory as chat_template.jinja",
    ),
    row(VLLM, &["--kv-cache-memory-bytes"], "write --kv-cache-bytes BYTES"),
    row(MANY, &["--cors-origins", "--cors-allow-origin"], "write --allowed-origin ORIGIN"),
    row(LLAMA, &["--reasoning-format"], "write --reasoning-parser NAME, or none"),
    row(LORAX, &["--hostname"], "write --host IP"),
    row(LORAX, &["--json-output"], "write --log-format json"),
    row(LORAX, &["--otlp-endpoint"], "write --otlp-traces-endpoint URL, in a build with otlp"),
    row(LORAX, &["--adapter-memory-fraction"], "write --adapter-gpu-bytes BYTES"),
    row(
        LORAX,
        &["--adapter-cycle-time-s"],
        "leave it out: who waits gets its turn by tokens served",
    ),
    row(SGLANG, &["--lora-eviction-policy"], "leave it out: the longest unused leaves its slot"),
    row(SGLANG, &["--max-queued-requests"], "write --queue-requests N"),
    row(SGLANG, &["--admin-api-key"], "write --keys FILE, with admin = true for that key"),
    row(SGLANG, &["--enable-metrics", "--enable-deterministic-inference"], ALWAYS),
    row(
        SGLANG,
        &["--enable-priority-scheduling"],
        "leave it out: 'priority' of a request always counts, lower first",
    ),
    row(MANY, &["--seed"], "there is none: each request has its own 'seed'"),
];

/// What to say of the first of `args` that another server knows and that starts with `wrong`, as
/// far as the parser came with it: of `-ngl` it names `-n`.
pub fn pointer(args: &[String], wrong: &str) -> Option<String> {
    let name = |arg: &str| arg.split('=').next().unwrap_or(arg).replace('_', "-");
    let wrong = name(wrong);
    let typed = args.iter().map(|arg| name(arg)).filter(|arg| arg.starts_with(&wrong));
    let known = |arg: String| {
        let row = FOREIGN.iter().find(|row| row.names.contains(&arg.as_str()))?;
        Some(format!("{arg} is a flag of {}: {}", row.of, row.instead))
    };
    typed.filter_map(known).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_known_in_all_spellings_and_with_its_value() {
        let said = |typed: &str, wrong: &str| pointer(&[typed.to_owned()], wrong);
        assert!(said("--lora_modules=a=b", "--lora_modules").unwrap().contains("--adapter NAME="));
        assert!(said("-ngl", "-n").unwrap().contains("--device cuda"));
        assert!(said("-hf=org/name", "-hf").unwrap().contains("Hub id"));
        assert_eq!(said("--no-such-flag", "--no-such-flag"), None);
        assert_eq!(said("--lora", "--lor"), pointer(&["--lora".into()], "--lora"));
    }

    #[test]
    fn no_flag_stands_in_the_table_twice() {
        let names: Vec<_> = FOREIGN.iter().flat_map(|row| row.names).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
    }
}
