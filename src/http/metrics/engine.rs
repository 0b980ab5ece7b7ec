//! The engine's own numbers, read when a page is asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::encode::{counter, gauge, histogram, labelled_gauge};
use crate::adapter::Catalog;
use crate::engine::{EngineHandle, Sizes};

/// The numbers of the engine and of the adapters, read when a page is asked for.
pub struct Numbers {
    pub engine: EngineHandle,
    pub catalog: Arc<Catalog>,
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self { engine, catalog } = self;
        let (stats, to) = (engine.stats(), &mut encoder);
        let of = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        gauge(to, "vllm:num_requests_running", "Sequences running.", of(&stats.running))?;
        gauge(to, "vllm:num_requests_waiting", "Sequences waiting.", of(&stats.waiting))?;
        let (used, total) = (of(&stats.blocks_used), of(&stats.blocks_total));
        let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
        gauge(to, "vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", usage)?;
        let loaded = catalog.names().len();
        gauge(to, "tessera:adapters_loaded", "Names of adapters in host memory.", loaded)?;
        gauge(to, "tessera:adapters_bytes", "Bytes of adapters in host memory.", catalog.bytes())?;
        let resident = of(&stats.adapters_resident);
        gauge(to, "tessera:adapters_resident", "Adapters in device slots.", resident)?;
        let in_flight = engine.in_flight();
        gauge(to, "tessera:requests_in_flight", "Sequences accepted, not finished.", in_flight)?;
        let counters = [
            ("vllm:prompt_tokens", "Prompt tokens processed.", &stats.prompt_tokens_total),
            (
                "vllm:prompt_tokens_cached",
                "Of them, those found in the prefix cache.",
                &stats.cached_tokens_total,
            ),
            ("vllm:generation_tokens", "Tokens drawn.", &stats.generation_tokens_total),
            ("tessera:failed_steps", "Steps that failed.", &stats.failed_steps_total),
            ("tessera:adapter_loads", "Adapters put on the device.", &stats.adapter_loads_total),
            (
                "tessera:adapter_evictions",
                "Adapters that left the device for others.",
                &stats.adapter_evictions_total,
            ),
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                &stats.prefix_query_tokens_total,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                &stats.prefix_hit_tokens_total,
            ),
            ("vllm:num_preemptions", "Sequences preempted.", &stats.preemptions_total),
            ("tessera:steps", "Steps of the engine.", &stats.steps_total),
        ];
        for (name, help, count) in counters {
            counter(to, name, help, count.load(Ordering::Relaxed))?;
        }
        let spread = &stats.spread;
        let name = "vllm:inter_token_latency_seconds";
        histogram(to, name, "Token to token.", &spread.inter_token_s)?;
        let help = "Prompt tokens that a step computed, and tokens that it drew.";
        histogram(to, "vllm:iteration_tokens_total", help, &spread.step_tokens)?;
        stats.sizes.get().map_or(Ok(()), |sizes| cache_config(to, sizes))
    }
}

/// As gateways read it; the values are spelled as vLLM spells them.
fn cache_config(to: &mut DescriptorEncoder<'_>, sizes: &Sizes) -> fmt::Result {
    let labels = [
        ("block_size", sizes.block_tokens.to_string()),
        ("num_gpu_blocks", sizes.blocks.to_string()),
        ("cache_dtype", sizes.kv_dtype.to_owned()),
        ("enable_prefix_caching", if sizes.prefix_cache { "True" } else { "False" }.to_owned()),
    ];
    labelled_gauge(to, "vllm:cache_config_info", "Sizes of the KV cache.", &labels, 1u64)
}
