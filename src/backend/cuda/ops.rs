//! The op vocabulary as kernel launches. A linear's bias and adapters are left to the kernel that
//! consumes its output, where there is one that takes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::args::{
    Add, AddRmsNorm, Address, Deltas, Embed, Expand, GatherRows, LINEARS, ROW_TILE, Replace,
    RmsNorm, Shrink, SiluMul,
};
use super::kernels::{self, column_blocks, norm_threads};
use super::launch::{Multiply, Stream};
use super::recordings::RECORDED_ROWS_MAX;
use super::step::{RowTables, Step};
use super::tensor::{Buffer, HeadNorm, LinearPart, Pending, Tensor};
use super::{Cuda, Vector};
use crate::backend::{Embedding, Linear, LinearOps, Norm, RowOps, Wanted};

pub(super) fn address(vector: Option<&Vector>) -> Address {
    vector.map_or(0, |vector| vector.address)
}

impl RowOps for Cuda {
    fn embed(&self, table: &Embedding<Cuda>, step: &Step) -> Tensor {
        let (n, hidden) = (step.tables.n, table.hidden);
        let out = self.tensor(n, hidden, false);
        let args = Embed {
            tokens: step.at(step.tables.tokens),
            table: table.weight.address,
            shift: address(table.shift.as_ref()),
            out: out.at(),
            deltas: step.rows().deltas,
            site: table.site.0,
            hidden: hidden as u32,
        };
        self.launch_kernel(kernels::EMBED, [n as u32, column_blocks(hidden), 1], &args);
        out
    }

    fn rms_norm(&self, x: &Tensor, norm: &Norm<Cuda>, step: &Step) -> Tensor {
        assert_eq!(x.cols, norm.width, "This is a bug: a norm of another width.");
        let out = self.tensor(x.rows, x.cols, false);
        let args = RmsNorm {
            out: out.at(),
            weight: norm.weight.address,
            shift: address(norm.shift.as_ref()),
            deltas: step.rows().deltas,
            site: norm.site.0,
            cols: x.cols as u32,
            width: norm.width as u32,
            eps: norm.eps,
            ..RmsNorm::default()
        };
        match x.take_pending() {
            Pending::Add(y) => self.add_norm(x, *y, Some(args)),
            other => {
                x.leave(other);
                self.dense(x);
                self.norm(x.at(), x.rows, &args);
            }
        }
        out
    }

    fn silu_mul(&self, gate: Tensor, up: Tensor) -> Tensor {
        assert_eq!((gate.rows, gate.cols), (up.rows, up.cols), "This is a bug: of other shapes.");
        let out = self.tensor(gate.rows, gate.cols, false);
        let pair = [&gate, &up];
        let parts = if gate.stride() == up.stride() {
            self.of_one_call(pair, &|_, part, _| part.head_norm.is_none())
        } else {
            None
        };
        let parts = parts.unwrap_or_else(|| {
            pair.map(|x| {
                self.dense(x);
                LinearPart::default()
            })
        });
        let args = SiluMul {
            gate: gate.at(),
            up: up.at(),
            out: out.at(),
            gate_bias: parts[0].bias,
            up_bias: parts[1].bias,
            deltas: parts[0].deltas,
            stride: gate.stride() as u64,
            gate_site: parts[0].site,
            up_site: parts[1].site,
            cols: gate.cols as u32,
            reserved: 0,
        };
        let grid = [parts[0].blocks(gate.rows), column_blocks(gate.cols), 1];
        let kernel = if parts[0].adapted() { kernels::SILU_MUL_TILES } else { kernels::SILU_MUL };
        self.launch_kernel(kernel, grid, &args);
        out
    }

    /// Left to the norm that reads x next.
    fn add(&self, x: Tensor, y: Tensor) -> Tensor {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "This is a bug: a sum of two shapes.");
        self.dense(&x);
        match y.take_pending() {
            Pending::Linear(part) if part.head_norm.is_none() && y.is_dense() => {
                y.leave(Pending::Linear(part));
            }
            other => {
                y.leave(other);
                self.dense(&y);
            }
        }
        x.leave(Pending::Add(Box::new(y)));
        x
    }

    fn pick_rows(&self, x: &Tensor, wanted: Wanted, step: &Step) -> Tensor {
        self.settle(x);
        let (count, rows) = match wanted {
            Wanted::Logits => (step.tables.m, step.tables.logit_rows),
            Wanted::Hidden => (step.tables.k, step.tables.hidden_rows),
        };
        self.gather(x, count, step.at(rows))
    }
}

impl LinearOps for Cuda {
    fn linears<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&Linear<Cuda>; N],
        step: &Step,
    ) -> [Tensor; N] {
        self.multiply_all(x, linears, step.rows(), false)
    }

    fn head(&self, x: &Tensor, head: &Linear<Cuda>, step: &Step) -> Tensor {
        let [logits] = self.multiply_all(x, [head], step.logit_rows(), true);
        logits
    }
}

impl Cuda {
    /// W x of each linear, as one product where their weights lie behind one another.
    fn products<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&Linear<Cuda>; N],
        float: bool,
    ) -> [Tensor; N] {
        let bytes = self.dtype.bytes();
        let behind = |pair: &[&Linear<Cuda>]| {
            let (a, b) = (&pair[0].weight, &pair[1].weight);
            a.address + a.bytes == b.address
        };
        if N > 1 && linears.windows(2).all(behind) {
            let outputs = linears.iter().map(|l| l.out_features).sum();
            let all = self.tensor(x.rows, outputs, float);
            self.multiply(x, linears[0], outputs, &all);
            let mut from = 0;
            return linears.map(|linear| {
                let y = all.columns(from, linear.out_features, bytes);
                from += linear.out_features;
                y
            });
        }
        linears.map(|linear| {
            let y = self.tensor(x.rows, linear.out_features, float);
            self.multiply(x, linear, linear.out_features, &y);
            y
        })
    }

    fn multiply(&self, x: &Tensor, linear: &Linear<Cuda>, outputs: usize, y: &Tensor) {
        assert_eq!(x.cols, linear.in_features, "This is a bug: x has another width than W.");
        let call = Multiply {
            x: x.at(),
            weight: linear.weight.address,
            y: y.at(),
            rows: x.rows,
            inputs: linear.in_features,
            outputs,
            y_f32: y.float,
        };
        assert_eq!(y.cols, outputs, "This is a bug: a product of another width.");
        // Rows of captured steps: few shapes, used again and again.
        let tune = x.rows.is_power_of_two() && x.rows <= RECORDED_ROWS_MAX;
        let name = || format!("product {}×{}", call.inputs, call.outputs);
        let start = || self.products.multiply(&self.stream, &call, tune);
        self.attempt(|| self.timed(name, start));
    }

    /// A x of each linear's adapters, shared by all that read it.
    fn shrink(
        &self,
        stream: &Stream,
        x: &Tensor,
        sites: &[u32],
        rows: &RowTables,
    ) -> (Deltas, Option<Buffer>) {
        let Some(factors) = &rows.factors else { return (rows.deltas, None) };
        let linears = sites.len();
        let entry = linears * factors.rank_stride;
        let plane_stride = rows.entries * entry;
        let buffer = self.reserve(4 * factors.splits * plane_stride);
        let mut site = [0; LINEARS];
        site[..linears].copy_from_slice(sites);
        let chunk = x.cols.div_ceil(factors.splits).next_multiple_of(32);
        let args = Shrink {
            x: x.at(),
            work: factors.work,
            work_count: factors.work_count,
            entry_row: rows.entry_row,
            entry_slot: rows.deltas.entry_slot,
            changes: rows.deltas.changes,
            h: buffer.address,
            plane_stride: plane_stride as u64,
            rank_stride: factors.rank_stride as u32,
            linears: linears as u32,
            sites: rows.deltas.sites,
            in_features: x.cols as u32,
            k_chunk: chunk as u32,
            splits: factors.splits as u32,
            site,
        };
        // Eight blocks a multiprocessor: the kernel's occupancy.
        let items = (factors.works * linears * factors.splits) as u32;
        let blocks = items.min(self.card.multiprocessors() * 8);
        self.launch_kernel_on(stream, kernels::DELTA_SHRINK, [blocks, 1, 1], &args);
        let deltas = Deltas {
            h: buffer.address,
            plane_stride: plane_stride as u64,
            rank_stride: factors.rank_stride as u32,
            linears: linears as u32,
            planes: factors.splits as u32,
            ..rows.deltas
        };
        (deltas, Some(buffer))
    }

    fn multiply_all<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&Linear<Cuda>; N],
        rows: &RowTables,
        float: bool,
    ) -> [Tensor; N] {
        const { assert!(N <= LINEARS) };
        self.dense(x);
        let sites = linears.map(|linear| linear.site.0);
        let beside = rows.factors.is_some()
            && self.beside.load(Ordering::Relaxed)
            && self.attempt(|| self.side.fork(&self.stream));
        let stream = if beside { &self.side.stream } else { &self.stream };
        // x and what is returned keep their memory until after the join.
        let (deltas, hidden) = self.shrink(stream, x, &sites, rows);
        let outputs = self.products(x, linears, float);
        // Whatever failed since: a capture ends only when all of it is joined.
        if beside && let Err(fault) = self.side.join(&self.stream) {
            self.attempt(|| Err(fault));
        }
        for (index, (y, linear)) in outputs.iter().zip(linears).enumerate() {
            let kept = hidden.iter().cloned().chain([x.buffer()]).collect();
            let part = LinearPart {
                bias: address(linear.bias.as_ref()),
                site: linear.site.0,
                linear: index as u32,
                deltas,
                adapted_count: rows.adapted_count,
                tiles_max: rows.tiles_max,
                head_norm: None,
                _kept: kept,
            };
            if rows.own_weights {
                self.replace(x, y, linear, rows, false);
            }
            if float || rows.mixed_weights {
                self.expand(y, &part);
            } else {
                y.leave(Pending::Linear(part));
            }
            if rows.mixed_weights {
                self.replace(x, y, linear, rows, true);
            }
        }
        outputs
    }

    /// Rows whose adapter has the linear's whole weight: those that carry it as it is, before their
    /// expand; or, `mixed`, the others, after it.
    fn replace(
        &self,
        x: &Tensor,
        y: &Tensor,
        linear: &Linear<Cuda>,
        rows: &RowTables,
        mixed: bool,
    ) {
        let args = Replace {
            x: x.at(),
            weight: linear.weight.address,
            y: y.at(),
            deltas: Deltas { tile_count: rows.adapted_count, ..rows.deltas },
            y_stride: y.stride() as u64,
            site: linear.site.0,
            in_features: x.cols as u32,
            out: y.cols as u32,
            reserved: 0,
        };
        let kernel = match (mixed, y.float) {
            (false, false) => kernels::DELTA_REPLACE,
            (false, true) => kernels::DELTA_REPLACE_FLOAT,
            (true, false) => kernels::DELTA_MIX,
            (true, true) => kernels::DELTA_MIX_FLOAT,
        };
        let grid = [rows.tiles_max as u32, y.cols.div_ceil(4) as u32, 1];
        self.launch_kernel(kernel, grid, &args);
    }

    /// Bias and adapters by a kernel of their own.
    fn expand(&self, y: &Tensor, part: &LinearPart) {
        if part.bias == 0 && !part.adapted() {
            return;
        }
        let all = part.deltas.tile_count;
        let tile_count = if part.bias == 0 { part.adapted_count } else { all };
        let args = Expand {
            y: y.at(),
            bias: part.bias,
            deltas: Deltas { tile_count, ..part.deltas },
            y_stride: y.stride() as u64,
            site: part.site,
            linear: part.linear,
            out: y.cols as u32,
            reserved: 0,
        };
        let kernel = if y.float { kernels::DELTA_EXPAND_FLOAT } else { kernels::DELTA_EXPAND };
        let grid = [part.blocks(y.rows), column_blocks(y.cols), 1];
        self.launch_kernel(kernel, grid, &args);
    }

    /// The rests of outputs that one call of `linears` gave, in its order, taken from them, where
    /// `takes(index, part, the first)` of each. `None` leaves everything as it is.
    pub(super) fn of_one_call<const N: usize>(
        &self,
        outputs: [&Tensor; N],
        takes: &dyn Fn(usize, &LinearPart, &LinearPart) -> bool,
    ) -> Option<[LinearPart; N]> {
        let taken = outputs.map(Tensor::take_pending);
        let first = match &taken[0] {
            Pending::Linear(first) => Some(first.clone()),
            _ => None,
        };
        let fits = |(index, pending): (usize, &Pending)| match (pending, &first) {
            (Pending::Linear(part), Some(first)) => {
                part.is_of(first, index as u32) && takes(index, part, first)
            }
            _ => false,
        };
        if !taken.iter().enumerate().all(fits) {
            outputs.iter().zip(taken).for_each(|(x, pending)| x.leave(pending));
            return None;
        }
        Some(taken.map(|pending| match pending {
            Pending::Linear(part) => part,
            _ => unreachable!("This is a bug: it was looked at."),
        }))
    }

    /// Does in place what is still to be done to x, for readers that cannot.
    pub(super) fn settle(&self, x: &Tensor) {
        match x.take_pending() {
            Pending::Nothing => {}
            Pending::Add(y) => self.add_norm(x, *y, None),
            Pending::Linear(part) => {
                self.expand(x, &part);
                if let Some(norm) = part.head_norm {
                    self.dense(x);
                    self.norm_heads(x, &norm);
                }
            }
        }
    }

    /// As [`Cuda::settle`], and its rows lie behind one another.
    pub(super) fn dense(&self, x: &Tensor) {
        self.settle(x);
        if !x.is_dense() {
            let copy = self.gather(x, x.rows, 0);
            x.moved(copy.buffer());
        }
    }

    /// Some rows of x, or all of them in order where `rows` is null.
    fn gather(&self, x: &Tensor, count: usize, rows: Address) -> Tensor {
        let out = self.tensor(count, x.cols, false);
        let args = GatherRows {
            x: x.at(),
            out: out.at(),
            rows,
            x_stride: x.stride() as u64,
            cols: x.cols as u32,
            reserved: 0,
        };
        self.launch_kernel(kernels::GATHER_ROWS, [count as u32, column_blocks(x.cols), 1], &args);
        out
    }

    fn norm(&self, x: Address, rows: usize, args: &RmsNorm) {
        let args = RmsNorm { x, ..*args };
        let grid = [rows as u32, args.cols / args.width, 1];
        let kernel = kernels::RMS_NORM.with_threads(norm_threads(args.width as usize));
        self.launch_kernel(kernel, grid, &args);
    }

    /// Norms heads in place.
    fn norm_heads(&self, x: &Tensor, norm: &HeadNorm) {
        let args = RmsNorm {
            x: x.at(),
            out: x.at(),
            weight: norm.weight,
            shift: norm.shift,
            deltas: norm.deltas,
            site: norm.site,
            cols: x.cols as u32,
            width: norm.width as u32,
            eps: norm.eps,
        };
        // By one warp, in the order of the rotation that norms heads: the same bits.
        let grid = [x.rows as u32, (x.cols / norm.width) as u32, 1];
        self.launch_kernel(kernels::RMS_NORM.with_threads(32), grid, &args);
    }

    /// `x += y`, y's bias and adapters first; then the norm of x, where one is wanted. Both are
    /// dense.
    fn add_norm(&self, x: &Tensor, y: Tensor, norm: Option<RmsNorm>) {
        let part = match y.take_pending() {
            Pending::Nothing => LinearPart::default(),
            Pending::Linear(part) => part,
            Pending::Add(_) => unreachable!("This is a bug: `add` has settled it."),
        };
        let cols = x.cols as u32;
        if norm.is_none() && part.bias == 0 && !part.adapted() {
            let args = Add { x: x.at(), y: y.at(), cols, reserved: 0 };
            let grid = [x.rows as u32, column_blocks(x.cols), 1];
            return self.launch_kernel(kernels::ADD, grid, &args);
        }
        let nothing = RmsNorm { cols, width: cols, ..RmsNorm::default() };
        let args = AddRmsNorm {
            residual: x.at(),
            y: y.at(),
            bias: part.bias,
            deltas: part.deltas,
            site: part.site,
            linear: part.linear,
            norm: norm.unwrap_or(nothing),
        };
        let threads = norm_threads(x.cols);
        if !part.adapted() {
            let grid = [x.rows as u32, 1, 1];
            return self.launch_kernel(kernels::ADD_RMS_NORM.with_threads(threads), grid, &args);
        }
        // A block takes whole rows: when rows are few, a block for each beats a load of B for
        // several.
        let rows = x.rows.div_ceil(self.card.multiprocessors() as usize).min(ROW_TILE);
        let grid = [part.blocks(x.rows), ROW_TILE.div_ceil(rows.max(1)) as u32, 1];
        self.launch_kernel(kernels::ADD_RMS_NORM_TILES.with_threads(threads), grid, &args);
    }

    /// Memory for `[rows, cols]`, f32 if `float`.
    pub(super) fn tensor(&self, rows: usize, cols: usize, float: bool) -> Tensor {
        let bytes = if float { 4 } else { self.dtype.bytes() };
        Tensor::new(self.reserve(rows * cols * bytes), rows, cols, float)
    }

    /// A stretch of the step's memory.
    pub(super) fn reserve(&self, bytes: usize) -> Buffer {
        match self.arena().take(bytes as u64) {
            Some(block) => Buffer { address: block.address, block: Some(Arc::new(block)) },
            None => {
                self.fail("a step is wider than the one measured at start");
                Buffer { address: 0, block: None }
            }
        }
    }
}
