//! Attention as kernel launches: short spans split over the context, prompts in tiles of their own.

use super::Cuda;
use super::Kv;
use super::args::Attention;
use super::kernels::{self, Kernel};
use super::step::Step;
use super::tables::{Tiles, splits_max};
use super::tensor::Tensor;
use crate::backend::AttentionShape;
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

impl Cuda {
    pub(super) fn attention_rows(
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
            q: q.place.address,
            q_stride: q.stride as u64,
            out: out.place.address,
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

    fn attend_short(&self, args: &Attention, tiles: &Tiles, step: &Step) {
        let splits = splits_max(step.context);
        let head_dim = args.head_dim as usize;
        let places = if splits > 1 { tiles.packed * args.kv_heads as usize * splits } else { 0 };
        let (partial, sums) = (self.place(places * head_dim * 4), self.place(places * 2 * 4));
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
