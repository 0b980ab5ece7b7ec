//! `cargo bench --bench kernels [THREADS]`: how near the CPU's linears come to reading their
//! weights once (few rows) and to the processor's arithmetic (many rows), and what adapters add.
//!
//! Every figure is the best of many, and stands beside a bound measured in the same run: on a
//! shared machine only such ratios mean anything.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use tessera::backend::cpu::simd::Level;
use tessera::backend::cpu::{Cpu, Matrix, Slots, Step};
use tessera::backend::{Device as _, HostMatrix, Linear, LinearOps, Outputs, Rows};
use tessera::delta::{DeltaBuilder, LowRank, Side};
use tessera::dtype::{Dtype, Values};
use tessera::ids::{BlockId, SiteId, Slot};
use tessera::recipe::Recipe;

/// Weights of one case in all, so that they come from memory and not from a cache.
const WEIGHT_BYTES_MIN: usize = 384 << 20;
/// Each figure is the best of as many runs as fit.
const CASE_SECONDS: f64 = 1.5;

fn best_seconds(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || start.elapsed().as_secs_f64() < CASE_SECONDS {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
}

/// What every figure of few rows is held against: summing 512 MB on all threads.
struct Read {
    pool: rayon::ThreadPool,
    buffer: Vec<u64>,
}

impl Read {
    fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Self { pool, buffer: vec![1; 64 << 20] }
    }

    fn sum(&self) -> u64 {
        let add = |chunk: &[u64]| chunk.iter().fold(0u64, |a, &b| a.wrapping_add(b));
        self.pool.install(|| self.buffer.par_chunks(1 << 16).map(add).sum())
    }

    /// Bytes a second.
    fn bandwidth(&self) -> f64 {
        let seconds = best_seconds(|| {
            black_box(self.sum());
        });
        size_of_val(self.buffer.as_slice()) as f64 / seconds
    }
}

fn rows(recipes: &[Recipe<Slot>]) -> Rows {
    let mut rows = Rows::default();
    for recipe in recipes {
        rows.push(&[0], 0, recipe, vec![BlockId(0)]);
    }
    rows
}

/// A step of `rows` that computes nothing for anybody but `ops`.
fn run(cpu: &Cpu, rows: &Rows, slots: &Slots, mut ops: impl FnMut(&Step<'_>)) {
    cpu.run(rows, slots, |step| {
        ops(step);
        Outputs { logits: None, hidden: None }
    });
}

fn linear(cpu: &Cpu, site: u32, [inner, outer]: [usize; 2], dtype: Dtype) -> Linear<Cpu> {
    let values = Values::from_f32(values(inner * outer), dtype);
    Linear {
        weight: Arc::new(cpu.upload(HostMatrix { values, rows: outer, cols: inner })),
        bias: None,
        site: SiteId(site),
        in_features: inner,
        out_features: outer,
    }
}

fn matmul(cpu: &Cpu, [inner, outer]: [usize; 2], dtype: Dtype, read: &Read) {
    let bytes = inner * outer * dtype.bytes();
    let copies = WEIGHT_BYTES_MIN.div_ceil(bytes);
    let linears: Vec<Linear<Cpu>> =
        (0..copies).map(|_| linear(cpu, 0, [inner, outer], dtype)).collect();
    let slots = cpu.slots(1);
    let mut alone = 0.0;
    // Here and not once: a neighbour's traffic changes from minute to minute.
    let bandwidth = read.bandwidth();
    for m in [1, 2, 4, 8, 16, 32, 128, 512] {
        let x = Matrix::new(values(m * inner), inner);
        let mut next = linears.iter().cycle();
        let mut seconds = 0.0;
        run(cpu, &rows(&vec![Recipe::base(); m]), &slots, |step| {
            seconds = best_seconds(|| {
                let linear = next.next().unwrap();
                black_box(cpu.linears(&x, [linear], step));
            });
        });
        if m == 1 {
            alone = seconds;
        }
        println!(
            "{:4} K {inner} N {outer} M {m:3}: {:8.3} ms, {:5.1} GB/s = {:3.0} % of a pure read, \
             {:4.0} GFLOP/s, {:5.2} x M=1",
            dtype.name(),
            seconds * 1e3,
            bytes as f64 / seconds / 1e9,
            bytes as f64 / seconds / bandwidth * 100.0,
            2e-9 * (m * inner * outer) as f64 / seconds,
            seconds / alone,
        );
    }
}

fn candle_matmul([inner, outer]: [usize; 2]) {
    let weight = Tensor::from_vec(values(inner * outer), (outer, inner), &Device::Cpu).unwrap();
    for m in [32, 128, 512] {
        let x = Tensor::from_vec(values(m * inner), (m, inner), &Device::Cpu).unwrap();
        let seconds = best_seconds(|| {
            black_box(x.matmul(&weight.t().unwrap()).unwrap());
        });
        let gflops = 2e-9 * (m * inner * outer) as f64 / seconds;
        let ms = seconds * 1e3;
        println!("candle f32 K {inner} N {outer} M {m:3}: {ms:8.3} ms, {gflops:4.0} GFLOP/s");
    }
}

/// The linears of a 403M Llama (8 layers), four rows, with adapters of rank 16 everywhere.
fn step(cpu: &Cpu, dtype: Dtype) {
    const SHAPES: [[usize; 2]; 7] = [
        [2048, 2048],
        [2048, 512],
        [2048, 512],
        [2048, 2048],
        [2048, 6144],
        [2048, 6144],
        [6144, 2048],
    ];
    let layers: Vec<Vec<Linear<Cpu>>> = (0..8)
        .map(|layer| {
            let site = |i: usize| (layer * SHAPES.len() + i) as u32;
            let each = SHAPES.iter().enumerate();
            each.map(|(i, &shape)| linear(cpu, site(i), shape, dtype)).collect()
        })
        .collect();
    let mut slots = cpu.slots(4);
    for slot in 0..4 {
        let mut builder = DeltaBuilder::default();
        for linear in layers.iter().flatten() {
            let [down, up] = [(Side::Down, linear.in_features), (Side::Up, linear.out_features)]
                .map(|(side, width)| builder.push_dense(side, &values(16 * width), 16).unwrap());
            let low_rank = LowRank { rank: 16, down, middle: None, up, end: None };
            builder.site(linear.site).low_rank = Some(low_rank);
        }
        cpu.write_slot(&mut slots, Slot(slot), Arc::new(builder.finish(dtype))).unwrap();
    }
    let x = Matrix::new(values(4 * 2048), 2048);
    let wide = Matrix::new(values(4 * 6144), 6144);
    let forward = |step: &Step<'_>| {
        for layer in &layers {
            let [q, k, v, o, gate, up, down] = std::array::from_fn(|i| &layer[i]);
            black_box(cpu.linears(&x, [q, k, v], step));
            black_box(cpu.linears(&x, [o], step));
            black_box(cpu.linears(&x, [gate, up], step));
            black_box(cpu.linears(&wide, [down], step));
        }
    };
    // In turn, so that a noisy neighbour disturbs all three alike.
    let four = |recipe: &dyn Fn(u32) -> Recipe<Slot>| rows(&[0, 1, 2, 3].map(recipe));
    let batches = [
        four(&|_| Recipe::base()),
        four(&|_| Recipe::one(Slot(0))),
        four(&|i| Recipe::one(Slot(i))),
    ];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..40 {
        for (best, rows) in best.iter_mut().zip(&batches) {
            let start = Instant::now();
            run(cpu, rows, &slots, forward);
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let [none, same, distinct] = best;
    println!(
        "{:4} linears of a 403M step, 4 rows: base {:.2} ms, one r16 adapter {:.2} ms, four \
         {:.2} ms: {:.0} % of base, {:.0} % of one",
        dtype.name(),
        none * 1e3,
        same * 1e3,
        distinct * 1e3,
        none / distinct * 100.0,
        same / distinct * 100.0,
    );
}

fn main() {
    let threads = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(2);
    let cpu = Cpu::new(threads);
    let read = Read::new(threads);
    println!("{threads} threads, {:?}", Level::detect());
    println!("pure read: {:.1} GB/s", read.bandwidth() / 1e9);
    for dtype in [Dtype::BF16, Dtype::F16] {
        step(&cpu, dtype);
    }
    for shape in [[2048, 8192], [6144, 2048]] {
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            matmul(&cpu, shape, dtype, &read);
        }
        candle_matmul(shape);
    }
}
