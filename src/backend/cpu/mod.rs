//! The CPU: the oracle every other device is checked against.

mod attention;
mod elementwise;
mod fold;
mod kv;
mod lowrank;
mod matmul;
mod norm;
mod pool;
mod sample;
pub mod simd;
mod weight;

use std::sync::Arc;

use rayon::prelude::*;

pub use self::kv::Kv;
pub use self::pool::{Batch, Pool};
use self::simd::Level;
pub use self::weight::Weight;
use super::{
    Adapters, AttentionShape, Backend, Embedding, Fault, HostMatrix, KvShape, Linear, Norm,
    RopeTable, Rows, SampleRow, Sampled, SlotError,
};
use crate::delta::{Delta, SiteDelta};
use crate::dtype::Values;
use crate::ids::Slot;

/// Work on fewer elements than this stays on the calling thread: waking others costs more.
const SERIAL_ELEMENTS_MAX: usize = 1 << 15;

/// This machine's processor: vector kernels on threads of its own.
#[derive(Debug)]
pub struct Cpu {
    /// `None` with one thread, which is then the caller's.
    workers: Option<rayon::ThreadPool>,
    threads: usize,
    level: Level,
}

impl Cpu {
    /// Computes on `threads` threads (0 counts as 1) with the best instructions there are.
    ///
    /// # Panics
    /// If the system refuses to start the threads.
    pub fn new(threads: usize) -> Self {
        Self::with_level(threads, Level::detect())
    }

    /// As [`Cpu::new`], with a chosen instruction set.
    ///
    /// # Panics
    /// If the system refuses to start the threads.
    pub fn with_level(threads: usize, level: Level) -> Self {
        let threads = threads.max(1);
        let workers = (threads > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = builder.thread_name(|i| format!("cpu-{i}")).build();
            pool.expect("the system refused to start the compute threads; lower --threads")
        });
        Self { workers, threads, level }
    }

    /// Runs `f` on a worker, so that the parallel steps within it need not wake them again.
    fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.workers {
            Some(workers) => workers.install(f),
            None => f(),
        }
    }

    /// Every task once, on all threads; tasks are handed out one by one as threads come free.
    fn each<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
        match &self.workers {
            Some(workers) if tasks.len() > 1 => {
                workers.install(|| tasks.into_par_iter().with_max_len(1).for_each(f));
            }
            _ => tasks.into_iter().for_each(f),
        }
    }

    /// `f(first row, rows)` over stretches of rows of `data`, in parallel where it pays.
    fn each_rows(
        &self,
        data: &mut [f32],
        cols: usize,
        f: impl Fn(usize, &mut [f32]) + Send + Sync,
    ) {
        if data.len() <= SERIAL_ELEMENTS_MAX || self.threads == 1 {
            return f(0, data);
        }
        let rows = (data.len() / cols).div_ceil(self.threads * 4);
        let tasks: Vec<_> = data.chunks_mut(rows * cols).enumerate().collect();
        self.each(tasks, |(i, chunk)| f(i * rows, chunk));
    }
}

/// Activations: row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    data: Vec<f32>,
    cols: usize,
}

impl Matrix {
    /// `data` as rows of `cols` numbers.
    pub fn new(data: Vec<f32>, cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "This is a bug: ragged matrix.");
        Self { data, cols }
    }

    fn zeros(rows: usize, cols: usize) -> Self {
        Self::new(vec![0.0; rows * cols], cols)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.cols..][..self.cols]
    }

    /// All rows.
    fn row_slices(&self) -> Vec<&[f32]> {
        self.data.chunks(self.cols).collect()
    }
}

impl Backend for Cpu {
    type Tensor = Matrix;
    type Weight = Weight;
    type Vector = Vec<f32>;
    type Kv = Kv;
    type Pool = Pool;
    type Batch = Batch;
    type Rope = RopeTable;

    fn upload(&self, matrix: HostMatrix) -> Weight {
        Weight::new(matrix)
    }

    fn upload_vector(&self, vector: &[f32]) -> Vec<f32> {
        vector.to_vec()
    }

    fn upload_rope(&self, rope: RopeTable) -> RopeTable {
        rope
    }

    fn kv(&self, shape: KvShape) -> Kv {
        Kv::new(shape)
    }

    fn pool(&self, slots: usize) -> Pool {
        Pool::new(slots)
    }

    fn write_slot(&self, pool: &mut Pool, slot: Slot, delta: Arc<Delta>) -> Result<(), SlotError> {
        pool.set(slot, Some(delta));
        Ok(())
    }

    fn clear_slot(&self, pool: &mut Pool, slot: Slot) {
        pool.set(slot, None);
    }

    fn batch(&self, rows: Rows) -> Batch {
        Batch::new(rows)
    }

    fn embed(&self, table: &Embedding<Cpu>, batch: &Batch, adapters: Adapters<'_, Cpu>) -> Matrix {
        elementwise::embed(self, table, batch, adapters.pool)
    }

    fn linears<const N: usize>(
        &self,
        x: &Matrix,
        linears: [&Linear<Cpu>; N],
        batch: &Batch,
        adapters: Adapters<'_, Cpu>,
    ) -> [Matrix; N] {
        matmul::linears(self, x, linears, &batch.segments, adapters.pool)
    }

    fn rms_norm(
        &self,
        x: &Matrix,
        norm: &Norm<Cpu>,
        batch: &Batch,
        adapters: Adapters<'_, Cpu>,
    ) -> Matrix {
        norm::rms_norm(self, x, norm, batch, adapters.pool)
    }

    fn rope_and_store(
        &self,
        q: &mut Matrix,
        k: &mut Matrix,
        v: &Matrix,
        rope: &RopeTable,
        layer: usize,
        kv: &mut Kv,
        batch: &Batch,
    ) {
        let head_dim = kv.shape().head_dim;
        elementwise::rotate(self, q, head_dim, rope, &batch.rows.positions);
        elementwise::rotate(self, k, head_dim, rope, &batch.rows.positions);
        kv.store(self, layer, k, v, &batch.rows);
    }

    fn attention(
        &self,
        q: &Matrix,
        shape: &AttentionShape,
        layer: usize,
        kv: &Kv,
        batch: &Batch,
    ) -> Matrix {
        attention::attention(self, q, shape, layer, kv, &batch.rows)
    }

    fn silu_mul(&self, gate: &Matrix, up: &Matrix) -> Matrix {
        elementwise::silu_mul(self, gate, up)
    }

    fn add(&self, x: &mut Matrix, y: &Matrix) {
        elementwise::add(self, x, y);
    }

    fn last_rows(&self, x: &Matrix, batch: &Batch) -> Matrix {
        let rows = batch.rows.logit_rows.iter();
        let data = rows.flat_map(|&row| x.row(row as usize)).copied().collect();
        Matrix::new(data, x.cols)
    }

    fn head(
        &self,
        x: &Matrix,
        head: &Linear<Cpu>,
        batch: &Batch,
        adapters: Adapters<'_, Cpu>,
    ) -> Matrix {
        let [logits] = matmul::linears(self, x, [head], &batch.logit_segments, adapters.pool);
        logits
    }

    fn sample(&self, logits: &Matrix, rows: &[SampleRow]) -> Result<Vec<Sampled>, Fault> {
        Ok(sample::sample(self, logits, rows))
    }

    fn download(&self, x: &Matrix) -> Result<Vec<f32>, Fault> {
        Ok(x.data.clone())
    }

    fn fold_linear(&self, linear: &mut Linear<Cpu>, change: &SiteDelta, pool: &Values) {
        fold::linear(self, linear, change, pool);
    }

    fn fold_norm(&self, norm: &mut Norm<Cpu>, change: &SiteDelta) {
        fold::norm(norm, change);
    }

    fn fold_embedding(&self, table: &mut Embedding<Cpu>, change: &SiteDelta, pool: &Values) {
        fold::embedding(self, table, change, pool);
    }
}
