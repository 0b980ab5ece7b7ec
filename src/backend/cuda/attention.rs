//! Attention as kernel launches: short spans split over the context, prompts in tiles of their own.

use super::Cuda;
use super::Kv;
use super::args::Attention;
use super::step::Step;
use super::tables::{Tiles, splits_max};
use super::tensor::Tensor;
use crate::backend::AttentionShape;
use crate::dtype::Dtype;

/// Whether tensor cores take heads of this width.
pub(super) fn has_tensor_cores(dtype: Dtype, head_dim: usize) -> bool {
    dtype != Dtype::F32 && head_dim.is_multiple_of(8) && head_dim <= 256
}

/// A kernel and its shared memory.
fn kernel(dtype: Dtype, head_dim: usize, prefill: bool) -> (&'static str, u32) {
    if !has_tensor_cores(dtype, head_dim) {
        let floats = 2 * head_dim + 128 + 32;
        return ("attention_any", (floats * 4) as u32);
    }
    match (head_dim, prefill) {
        (..=64, false) => ("attention_decode_64", 39168),
        (..=128, false) => ("attention_decode_128", 73984),
        (_, false) => ("attention_decode_256", 76032),
        (..=64, true) => ("attention_prefill_64", 46080),
        (..=128, true) => ("attention_prefill_128", 87040),
        (_, true) => ("attention_prefill_256", 101_376),
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
            let (name, shared) = kernel(self.dtype, shape.head_dim, true);
            self.launch(name, [1, args.kv_heads, tiles.max as u32], 128, shared, &args);
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
        let (name, shared) = kernel(self.dtype, head_dim, false);
        let tiles = tiles.max as u32;
        self.launch(name, [splits as u32, args.kv_heads, tiles], 128, shared, &args);
        if splits > 1 {
            self.launch("attention_combine", [16, args.kv_heads, tiles], 128, 0, &args);
        }
    }
}
