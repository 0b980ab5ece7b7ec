//! What the kernels of a step have to move and multiply, beside how long they took.

use serde::Serialize;

use crate::backend::cuda::{Ceilings, Timed};
use crate::model::ModelConfig;

/// A profiled step.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Positions that each row attends to, on average.
    pub context: usize,
    /// Rows with logits.
    pub logits: usize,
    /// Distinct adapters, and the rank of each.
    pub adapters: usize,
    /// 0 without factors.
    pub rank: usize,
    /// Of weights, activations, adapters and KV.
    pub element_bytes: usize,
}

/// One kernel of one step.
#[derive(Clone, Debug, Serialize)]
pub struct KernelLine {
    /// `decode` or `prefill`.
    pub phase: &'static str,
    /// The case's name.
    pub case: String,
    /// Its name.
    pub kernel: String,
    /// In one step.
    pub launches: usize,
    /// Of one launch.
    pub microseconds: f64,
    /// Of the step's kernels.
    pub share_of_step: f64,
    /// What it has to read and write at least.
    pub bytes_per_second: Option<f64>,
    /// Of the card's copy.
    pub share_of_copy: Option<f64>,
    /// Of products and attention.
    pub flops_per_second: Option<f64>,
    /// Of the card's product.
    pub share_of_product: Option<f64>,
}

/// Bytes and multiply-adds (as two) of all launches of a kernel in one step; no flops where they
/// do not matter.
fn work(kernel: &str, launches: usize, config: &ModelConfig, s: &Shape) -> Option<(f64, f64)> {
    let width = s.element_bytes;
    let layers = config.layers;
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let (hidden, inter) = (config.hidden, config.inner);
    // Factors of B, and of A, over one layer.
    let factor = |columns: usize| s.adapters * s.rank * columns * width;
    let rows = |columns: usize| s.rows * columns * width;
    let (bytes, flops) = match kernel.trim_end_matches("_tiles") {
        "embed" => (rows(2 * hidden), 0),
        "gather_rows" => (2 * s.logits * hidden * width, 0),
        "rms_norm" => (launches * rows(2 * hidden), 0),
        // The residual is read and written, the sum's other part read, the norm written.
        "add_rms_norm" => (launches * (rows(4 * hidden) + factor(hidden)), 0),
        "rope_store" => (layers * (rows(2 * (q + 2 * kv)) + factor(q + 2 * kv)), 0),
        "silu_mul" => (layers * (rows(3 * inter) + factor(2 * inter)), 0),
        "delta_shrink" => {
            let read = factor(3 * hidden + q + 2 * hidden + inter);
            (layers * (read + rows(2 * hidden + q + inter)), 0)
        }
        "sample" => (s.logits * config.vocabulary * 4, 0),
        name if name.starts_with("attention_") && name != "attention_combine" => {
            // A prompt's keys are read once for all of its rows.
            let sequences = s.logits;
            let keys = sequences * s.context.max(s.rows / sequences.max(1)) * 2 * kv * width;
            (layers * (keys + rows(2 * q)), layers * 4 * s.rows * s.context * q)
        }
        name => {
            let (inputs, outputs) = name.strip_prefix("product ")?.split_once('×')?;
            let (inputs, outputs): (usize, usize) = (inputs.parse().ok()?, outputs.parse().ok()?);
            let rows = if outputs == config.vocabulary { s.logits } else { s.rows };
            let out_width = if outputs == config.vocabulary { 4 } else { width };
            let bytes = inputs * outputs * width + rows * (inputs * width + outputs * out_width);
            (launches * bytes, launches * 2 * rows * inputs * outputs)
        }
    };
    Some((bytes as f64, flops as f64))
}

/// A line for each kernel.
pub fn lines(
    phase: &'static str,
    case: &str,
    timed: &[Timed],
    config: &ModelConfig,
    shape: &Shape,
    ceilings: &Ceilings,
) -> Vec<KernelLine> {
    let all: f64 = timed.iter().map(|t| t.seconds).sum();
    let line = |t: &Timed| {
        let work = work(&t.kernel, t.launches, config, shape);
        let bytes_per_second = work.map(|(bytes, _)| bytes / t.seconds);
        let flops_per_second =
            work.filter(|(_, flops)| *flops > 0.0).map(|(_, flops)| flops / t.seconds);
        KernelLine {
            phase,
            case: case.to_owned(),
            kernel: t.kernel.clone(),
            launches: t.launches,
            microseconds: t.seconds / t.launches as f64 * 1e6,
            share_of_step: t.seconds / all,
            bytes_per_second,
            share_of_copy: bytes_per_second.map(|b| b / ceilings.copy_bytes_per_second),
            flops_per_second,
            share_of_product: flops_per_second.map(|f| f / ceilings.flops_per_second),
        }
    };
    timed.iter().map(line).collect()
}

/// For people.
pub fn table(title: &str, lines: &[KernelLine]) -> String {
    let mut text = format!(
        "\nkernels, {title}\n{:<26}{:>8} {:>9} {:>7} {:>8} {:>8} {:>9} {:>8}\n",
        "kernel", "launches", "us", "of step", "GB/s", "of copy", "TFLOP/s", "of GEMM"
    );
    let number = |value: Option<f64>, unit: f64, digits: usize| {
        value.map_or("-".into(), |value| format!("{:.digits$}", value / unit))
    };
    for line in lines {
        text += &format!(
            "{:<26}{:>8} {:>9.2} {:>7.3} {:>8} {:>8} {:>9} {:>8}\n",
            line.kernel,
            line.launches,
            line.microseconds,
            line.share_of_step,
            number(line.bytes_per_second, 1e9, 0),
            number(line.share_of_copy, 1.0, 2),
            number(line.flops_per_second, 1e12, 1),
            number(line.share_of_product, 1.0, 2),
        );
    }
    text
}
