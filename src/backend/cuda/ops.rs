//! The op vocabulary as kernel launches. A linear's bias and adapters are left to the kernel that
//! reads its output next, where there is one that takes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::args::{
    self, Add, AddRmsNorm, Address, Deltas, Embed, Expand, GatherRows, LINEARS, ROW_TILE, Replace,
    RmsNorm, RopeInput, RopeStore, Shrink, SiluMul,
};
use super::launch::{Multiply, Stream};
use super::recordings::RECORDED_ROWS_MAX;
use super::step::{RowTables, Step};
use super::tensor::{HeadNorm, LinearPart, Pending, Place, Tensor};
use super::{Cuda, Kv, Rope, Vector};
use crate::backend::{Embedding, Linear, Norm};

/// Columns of one block of an elementwise kernel: 128 threads of 8.
const TILE_COLUMNS: usize = 1024;
/// Shared bytes of an expand: of a row, and of a tile of rows.
const RANK_TILE_BYTES: u32 = args::RANK_TILE_BYTES as u32;
const TILE_BYTES: u32 = RANK_TILE_BYTES * ROW_TILE as u32;
const REDUCE_BYTES: u32 = 32 * 4;

fn tiles(cols: usize) -> u32 {
    cols.div_ceil(TILE_COLUMNS) as u32
}

/// Threads that norm a row of `width`.
fn norm_threads(width: usize) -> u32 {
    (width.div_ceil(8).next_multiple_of(32) as u32).min(512)
}

fn address(vector: Option<&Vector>) -> Address {
    vector.map_or(0, |vector| vector.address)
}

impl Cuda {
    pub(super) fn embed_rows(&self, table: &Embedding<Cuda>, step: &Step) -> Tensor {
        let (n, hidden) = (step.tables.n, table.hidden);
        let out = self.tensor(n, hidden, false);
        let args = Embed {
            tokens: step.at(step.tables.tokens),
            table: table.weight.address,
            shift: address(table.shift.as_ref()),
            out: out.place.address,
            deltas: step.rows().deltas,
            site: table.site.0,
            hidden: hidden as u32,
        };
        self.launch("embed", [n as u32, tiles(hidden), 1], 128, RANK_TILE_BYTES, &args);
        out
    }

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
            x: x.place.address,
            weight: linear.weight.address,
            y: y.place.address,
            rows: x.rows,
            inputs: linear.in_features,
            outputs,
            y_f32: y.float,
        };
        assert_eq!(y.cols, outputs, "This is a bug: a product of another width.");
        // Rows of recorded steps: few shapes, used again and again.
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
    ) -> (Deltas, Option<Place>) {
        let Some(factors) = &rows.factors else { return (rows.deltas, None) };
        let linears = sites.len();
        let entry = linears * factors.rank_stride;
        let plane_stride = rows.entries * entry;
        let place = self.place(4 * factors.splits * plane_stride);
        let mut site = [0; LINEARS];
        site[..linears].copy_from_slice(sites);
        let chunk = x.cols.div_ceil(factors.splits).next_multiple_of(32);
        let args = Shrink {
            x: x.place.address,
            work: factors.work,
            work_count: factors.work_count,
            entry_row: rows.entry_row,
            entry_slot: rows.deltas.entry_slot,
            changes: rows.deltas.changes,
            h: place.address,
            plane_stride: plane_stride as u64,
            rank_stride: factors.rank_stride as u32,
            linears: linears as u32,
            sites: rows.deltas.sites,
            in_features: x.cols as u32,
            k_chunk: chunk as u32,
            splits: factors.splits as u32,
            site,
        };
        let items = (factors.works * linears * factors.splits) as u32;
        let blocks = items.min(self.card.multiprocessors() * 8);
        self.launch_on(stream, "delta_shrink", [blocks, 1, 1], 128, 8192, &args);
        let deltas = Deltas {
            h: place.address,
            plane_stride: plane_stride as u64,
            rank_stride: factors.rank_stride as u32,
            linears: linears as u32,
            planes: factors.splits as u32,
            ..rows.deltas
        };
        (deltas, Some(place))
    }

    pub(super) fn linear_rows<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&Linear<Cuda>; N],
        rows: &RowTables,
        float: bool,
    ) -> [Tensor; N] {
        const { assert!(N <= LINEARS) };
        self.settle(x);
        assert_eq!(x.stride, x.cols, "This is a bug: a linear reads rows that are not dense.");
        let sites = linears.map(|linear| linear.site.0);
        let beside = rows.factors.is_some()
            && self.beside.load(Ordering::Relaxed)
            && self.attempt(|| self.side.fork(&self.stream));
        let stream = if beside { &self.side.stream } else { &self.stream };
        // x and what is returned keep their places until after the join.
        let (deltas, hidden) = self.shrink(stream, x, &sites, rows);
        let mut outputs = self.products(x, linears, float);
        // Whatever failed since: a recording ends only when all of it is joined.
        if beside && let Err(fault) = self.side.join(&self.stream) {
            self.attempt(|| Err(fault));
        }
        outputs.iter_mut().for_each(|y| y.of_linear = true);
        for (index, (y, linear)) in outputs.iter().zip(linears).enumerate() {
            let kept = hidden.iter().cloned().chain([x.place.clone()]).collect();
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
                self.replace(x, y, linear, rows);
            }
            if float {
                self.expand(y, &part);
            } else {
                y.pending.replace(Pending::Linear(part));
            }
        }
        outputs
    }

    /// Rows whose adapter has the linear's whole weight.
    fn replace(&self, x: &Tensor, y: &Tensor, linear: &Linear<Cuda>, rows: &RowTables) {
        let args = Replace {
            x: x.place.address,
            y: y.place.address,
            deltas: Deltas { tile_count: rows.adapted_count, ..rows.deltas },
            y_stride: y.stride as u64,
            site: linear.site.0,
            in_features: x.cols as u32,
            out: y.cols as u32,
            reserved: 0,
        };
        let name = if y.float { "delta_replace_float" } else { "delta_replace" };
        let grid = [rows.tiles_max as u32, y.cols.div_ceil(4) as u32, 1];
        self.launch(name, grid, 128, 0, &args);
    }

    /// Bias and adapters by a kernel of their own.
    fn expand(&self, y: &Tensor, part: &LinearPart) {
        if part.bias == 0 && !part.adapted() {
            return;
        }
        let all = part.deltas.tile_count;
        let tile_count = if part.bias == 0 { part.adapted_count } else { all };
        let args = Expand {
            y: y.place.address,
            bias: part.bias,
            deltas: Deltas { tile_count, ..part.deltas },
            y_stride: y.stride as u64,
            site: part.site,
            linear: part.linear,
            out: y.cols as u32,
            reserved: 0,
        };
        let name = if y.float { "delta_expand_float" } else { "delta_expand" };
        let grid = [part.blocks(y.rows), tiles(y.cols), 1];
        self.launch(name, grid, 128, TILE_BYTES, &args);
    }

    /// Does what is still to be done to x, for readers that cannot.
    pub(super) fn settle(&self, x: &Tensor) {
        match x.take_pending() {
            Pending::Nothing => {}
            Pending::Add(y) => self.add_norm(x, &y, None),
            Pending::Linear(part) => {
                assert!(part.head_norm.is_none(), "This is a bug: rotation follows a head's norm.");
                self.expand(x, &part);
            }
        }
    }

    fn norm(&self, x: &Tensor, args: &RmsNorm, out: &Tensor) {
        assert_eq!(x.stride, x.cols, "This is a bug: a norm reads rows that are not dense.");
        let args = RmsNorm { x: x.place.address, out: out.place.address, ..*args };
        let grid = [x.rows as u32, args.cols / args.width, 1];
        self.launch("rms_norm", grid, norm_threads(args.width as usize), REDUCE_BYTES, &args);
    }

    /// `x += y`, y's bias and adapters first; then the norm of x, where one is wanted.
    fn add_norm(&self, x: &Tensor, y: &Tensor, norm: Option<RmsNorm>) {
        let part = match y.take_pending() {
            Pending::Linear(part) if part.head_norm.is_none() => part,
            other => {
                y.pending.replace(other);
                self.settle(y);
                LinearPart::default()
            }
        };
        let cols = x.cols as u32;
        let nothing = RmsNorm { cols, width: cols, ..RmsNorm::default() };
        let args = AddRmsNorm {
            residual: x.place.address,
            y: y.place.address,
            bias: part.bias,
            deltas: part.deltas,
            site: part.site,
            linear: part.linear,
            norm: norm.unwrap_or(nothing),
        };
        assert_eq!((y.stride, y.cols), (x.cols, x.cols), "This is a bug: a sum of two widths.");
        let threads = norm_threads(x.cols);
        if !part.adapted() {
            let grid = [x.rows as u32, 1, 1];
            return self.launch("add_rms_norm", grid, threads, REDUCE_BYTES, &args);
        }
        // A block takes whole rows: when rows are few, a block for each beats a load of B for
        // several.
        let rows = x.rows.div_ceil(self.card.multiprocessors() as usize).min(ROW_TILE);
        let grid = [part.blocks(x.rows), ROW_TILE.div_ceil(rows.max(1)) as u32, 1];
        self.launch("add_rms_norm_tiles", grid, threads, TILE_BYTES + REDUCE_BYTES, &args);
    }

    pub(super) fn norm_rows(&self, x: &Tensor, norm: &Norm<Cuda>, rows: &RowTables) -> Tensor {
        let shift = address(norm.shift.as_ref());
        if x.of_linear {
            let weight = norm.weight.address;
            return self.head_norm(
                x,
                rows,
                HeadNorm { weight, shift, site: norm.site.0, eps: norm.eps },
            );
        }
        let out = self.tensor(x.rows, x.cols, false);
        let args = RmsNorm {
            x: x.place.address,
            out: out.place.address,
            weight: norm.weight.address,
            shift,
            deltas: rows.deltas,
            site: norm.site.0,
            cols: x.cols as u32,
            width: norm.width as u32,
            eps: norm.eps,
        };
        match x.take_pending() {
            Pending::Add(y) => self.add_norm(x, &y, Some(args)),
            other => {
                x.pending.replace(other);
                self.settle(x);
                self.norm(x, &args, &out);
            }
        }
        out
    }

    /// Left to the rotation that follows.
    fn head_norm(&self, x: &Tensor, rows: &RowTables, norm: HeadNorm) -> Tensor {
        let part = match x.take_pending() {
            Pending::Linear(part) => part,
            // All is done but the norm: a site that nobody changes stands for the linear.
            _ => LinearPart {
                deltas: rows.deltas,
                site: rows.deltas.sites - 1,
                adapted_count: rows.adapted_count,
                tiles_max: rows.tiles_max,
                ..LinearPart::default()
            },
        };
        assert!(part.head_norm.is_none(), "This is a bug: heads are normed twice.");
        let y = x.clone();
        y.pending.replace(Pending::Linear(LinearPart { head_norm: Some(norm), ..part }));
        y
    }

    pub(super) fn rope_rows(
        &self,
        [q, k, v]: [&Tensor; 3],
        rope: &Rope,
        layer: usize,
        kv: &Kv,
        step: &Step,
    ) {
        let head_dim = kv.shape.head_dim;
        let parts = [q, k, v].map(|x| match x.take_pending() {
            Pending::Linear(part) => part,
            other => {
                x.pending.replace(other);
                self.settle(x);
                LinearPart::default()
            }
        });
        // Either one call of `linears` made all three, or none has adapters left to apply.
        let deltas = parts[0].deltas;
        let input = |x: &Tensor, part: &LinearPart| RopeInput {
            x: x.place.address,
            row_stride: x.stride as u64,
            bias: part.bias,
            norm_weight: part.head_norm.map_or(0, |norm| norm.weight),
            norm_shift: part.head_norm.map_or(0, |norm| norm.shift),
            heads: (x.cols / head_dim) as u32,
            site: part.site,
            norm_site: part.head_norm.map_or(0, |norm| norm.site),
            reserved: 0,
        };
        let block_heads = (TILE_COLUMNS / head_dim).max(1);
        let (keys, values) = kv.layer(layer);
        let args = RopeStore {
            q: input(q, &parts[0]),
            k: input(k, &parts[1]),
            v: input(v, &parts[2]),
            deltas,
            cos: rope.cos.address,
            sin: rope.sin.address,
            positions: step.at(step.tables.positions),
            row_table: step.at(step.tables.row_table),
            block_tables: step.at(step.tables.block_tables),
            keys,
            values,
            block_tokens: kv.shape.block_tokens as u32,
            head_dim: head_dim as u32,
            half: rope.half as u32,
            block_heads: block_heads as u32,
            eps: parts[0].head_norm.map_or(0.0, |norm| norm.eps),
            reserved: 0,
        };
        let heads = |x: &Tensor| (x.cols / head_dim).div_ceil(block_heads) as u32;
        let grid = [parts[0].blocks(q.rows), heads(q) + 2 * heads(k), 1];
        let row_bytes = (block_heads * head_dim * 4) as u32;
        if parts[0].adapted() {
            let shared = (RANK_TILE_BYTES + row_bytes) * ROW_TILE as u32;
            self.launch("rope_store_tiles", grid, 128, shared, &args);
        } else {
            self.launch("rope_store", grid, 128, row_bytes, &args);
        }
    }

    pub(super) fn silu_mul_rows(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        assert_eq!(gate.stride, up.stride, "This is a bug: gate and up lie differently.");
        let out = self.tensor(gate.rows, gate.cols, false);
        let parts = [gate, up].map(|x| match x.take_pending() {
            Pending::Linear(part) if part.head_norm.is_none() => part,
            other => {
                x.pending.replace(other);
                self.settle(x);
                LinearPart::default()
            }
        });
        let args = SiluMul {
            gate: gate.place.address,
            up: up.place.address,
            out: out.place.address,
            gate_bias: parts[0].bias,
            up_bias: parts[1].bias,
            deltas: parts[0].deltas,
            stride: gate.stride as u64,
            gate_site: parts[0].site,
            up_site: parts[1].site,
            cols: gate.cols as u32,
            reserved: 0,
        };
        let grid = [parts[0].blocks(gate.rows), tiles(gate.cols), 1];
        if parts[0].adapted() {
            self.launch("silu_mul_tiles", grid, 128, TILE_BYTES, &args);
        } else {
            self.launch("silu_mul", grid, 128, 0, &args);
        }
        out
    }

    /// Left to the norm that follows.
    pub(super) fn add_rows(&self, x: &mut Tensor, y: &Tensor) {
        self.settle(x);
        let plain = matches!(&*y.pending.borrow(), Pending::Add(_)) || y.stride != y.cols;
        if plain {
            self.settle(y);
            assert_eq!((y.stride, y.cols), (x.cols, x.cols), "This is a bug: a sum of two widths.");
            let args =
                Add { x: x.place.address, y: y.place.address, cols: x.cols as u32, reserved: 0 };
            return self.launch("add", [x.rows as u32, tiles(x.cols), 1], 128, 0, &args);
        }
        x.pending.replace(Pending::Add(Box::new(y.clone())));
        y.take_pending();
    }

    pub(super) fn gather(&self, x: &Tensor, step: &Step) -> Tensor {
        self.settle(x);
        let m = step.tables.m;
        let out = self.tensor(m, x.cols, false);
        let args = GatherRows {
            x: x.place.address,
            out: out.place.address,
            rows: step.at(step.tables.logit_rows),
            cols: x.cols as u32,
            reserved: 0,
        };
        self.launch("gather_rows", [m as u32, tiles(x.cols), 1], 128, 0, &args);
        out
    }

    /// A place for `[rows, cols]`, f32 if `float`.
    pub(super) fn tensor(&self, rows: usize, cols: usize, float: bool) -> Tensor {
        let bytes = if float { 4 } else { self.dtype.bytes() };
        Tensor { float, ..Tensor::new(self.place(rows * cols * bytes), rows, cols) }
    }

    pub(super) fn place(&self, bytes: usize) -> Place {
        match self.arena().take(bytes as u64) {
            Some(block) => Place { address: block.address, block: Some(Arc::new(block)) },
            None => {
                self.fail("a step is wider than the one measured at start");
                Place { address: 0, block: None }
            }
        }
    }
}
