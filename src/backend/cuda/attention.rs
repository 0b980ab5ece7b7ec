//! Attention as kernel launches: rotation and the write to pages, short spans split over the
//! context (split-K, as FlashDecoding), prompts in tiles of their own.

use super::args::{Attention, RopeInput, RopeStore};
use super::kernels::{self, Kernel, TILE_COLUMNS};
use super::ops::address;
use super::step::Step;
use super::tables::{Tiles, splits_max};
use super::tensor::{HeadNorm, LinearPart, Pending, Tensor};
use super::{Cuda, Kv, Rope};
use crate::backend::{AttentionOps, AttentionShape, Norm};
use crate::dtype::Dtype;

/// Whether tensor cores take heads of this width.
pub(super) fn has_tensor_cores(dtype: Dtype, head_dim: usize) -> bool {
    dtype != Dtype::F32 && head_dim.is_multiple_of(8) && head_dim <= 256
}

/// The kernel for heads of this width.
fn kernel(dtype: Dtype, head_dim: usize, prefill: bool) -> Kernel {
    if !has_tensor_cores(dtype, head_dim) {
        return kernels::attention_any(head_dim);
    }
    match (head_dim, prefill) {
        (..=64, false) => kernels::ATTENTION_DECODE_64,
        (..=128, false) => kernels::ATTENTION_DECODE_128,
        (_, false) => kernels::ATTENTION_DECODE_256,
        (..=64, true) => kernels::ATTENTION_PREFILL_64,
        (..=128, true) => kernels::ATTENTION_PREFILL_128,
        (_, true) => kernels::ATTENTION_PREFILL_256,
    }
}

impl AttentionOps for Cuda {
    /// Left to the rotation that consumes it.
    fn head_norm(&self, x: Tensor, norm: &Norm<Cuda>, step: &Step) -> Tensor {
        let of_heads = x.cols.is_multiple_of(norm.width);
        assert!(of_heads, "This is a bug: {} columns are no heads of {}.", x.cols, norm.width);
        let part = match x.take_pending() {
            Pending::Linear(part) if part.head_norm.is_none() => part,
            other => {
                x.leave(other);
                self.settle(&x);
                unchanged(step)
            }
        };
        let head_norm = HeadNorm {
            weight: norm.weight.address,
            shift: address(norm.shift.as_ref()),
            site: norm.site.0,
            width: norm.width,
            eps: norm.eps,
            deltas: step.rows().deltas,
        };
        x.leave(Pending::Linear(LinearPart { head_norm: Some(head_norm), ..part }));
        x
    }

    fn rope_and_store(
        &self,
        [q, k, v]: [Tensor; 3],
        rope: &Rope,
        layer: usize,
        kv: &mut Kv,
        step: &Step,
    ) -> Tensor {
        let head_dim = kv.shape.head_dim;
        let all = [&q, &k, &v];
        let eps = |part: &LinearPart| part.head_norm.map(|norm| norm.eps.to_bits());
        // The kernel norms heads of q and of k, with one eps.
        let takes = |index: usize, part: &LinearPart, q: &LinearPart| match &part.head_norm {
            Some(norm) => index < 2 && norm.width == head_dim && eps(part) == eps(q),
            None => index == 2 || eps(q).is_none(),
        };
        let parts = self.of_one_call(all, &takes).unwrap_or_else(|| {
            all.map(|x| {
                self.settle(x);
                unchanged(step)
            })
        });
        let input = |x: &Tensor, part: &LinearPart| RopeInput {
            x: x.at(),
            row_stride: x.stride() as u64,
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
            q: input(&q, &parts[0]),
            k: input(&k, &parts[1]),
            v: input(&v, &parts[2]),
            deltas: parts[0].deltas,
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
        let grid = [parts[0].blocks(q.rows), heads(&q) + 2 * heads(&k), 1];
        let kernel = match parts[0].adapted() {
            true => kernels::rope_store_tiles(block_heads, head_dim),
            false => kernels::rope_store(block_heads, head_dim),
        };
        self.launch_kernel(kernel, grid, &args);
        q
    }

    fn attention(
        &self,
        q: &Tensor,
        shape: &AttentionShape,
        layer: usize,
        kv: &Kv,
        step: &Step,
    ) -> Tensor {
        self.settle(q);
        let out = self.tensor(q.rows, q.cols, false);
        let (keys, values) = kv.layer(layer);
        let args = Attention {
            q: q.at(),
            q_stride: q.stride() as u64,
            out: out.at(),
            keys,
            values,
            positions: step.at(step.tables.positions),
            row_table: step.at(step.tables.row_table),
            block_tables: step.at(step.tables.block_tables),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            block_tokens: kv.shape.block_tokens as u32,
            window: shape.window.unwrap_or(0),
            scale: shape.scale,
            ..Attention::default()
        };
        if let Some(tiles) = &step.tables.decode {
            self.attend_short(&args, tiles, step);
        }
        if let Some(tiles) = &step.tables.prefill {
            let args = Attention {
                tiles: step.at(tiles.tiles),
                tile_count: step.at(tiles.count),
                splits_max: 1,
                ..args
            };
            let kernel = kernel(self.dtype, shape.head_dim, true);
            self.launch_kernel(kernel, [1, args.kv_heads, tiles.max as u32], &args);
        }
        out
    }
}

/// The rest of what nothing is left of: a site that nobody changes stands for the linear.
fn unchanged(step: &Step) -> LinearPart {
    let rows = step.rows();
    LinearPart {
        deltas: rows.deltas,
        site: rows.deltas.sites.saturating_sub(1),
        adapted_count: rows.adapted_count,
        tiles_max: rows.tiles_max,
        ..LinearPart::default()
    }
}

impl Cuda {
    fn attend_short(&self, args: &Attention, tiles: &Tiles, step: &Step) {
        let splits = splits_max(step.context);
        let head_dim = args.head_dim as usize;
        let places = if splits > 1 { tiles.packed * args.kv_heads as usize * splits } else { 0 };
        let (partial, sums) = (self.reserve(places * head_dim * 4), self.reserve(places * 2 * 4));
        let args = Attention {
            tiles: step.at(tiles.tiles),
            tile_count: step.at(tiles.count),
            partial: partial.address,
            partial_sums: sums.address,
            splits_max: splits as u32,
            ..*args
        };
        let kernel = kernel(self.dtype, head_dim, false);
        let tiles = tiles.max as u32;
        self.launch_kernel(kernel, [splits as u32, args.kv_heads, tiles], &args);
        if splits > 1 {
            self.launch_kernel(kernels::ATTENTION_COMBINE, [16, args.kv_heads, tiles], &args);
        }
    }
}
