//! What kernels take, as `kernels/*.cu` declare it: see there for what each field means.

/// A device pointer; 0 is null.
pub type Address = u64;

/// Sites of one shrink's arguments: at least [`crate::backend::LINEARS_MAX`].
pub const LINEARS: usize = 4;
/// Entries of one shrink's work item at most.
pub const SHRINK_ROWS: usize = 32;
/// Ranks of one shrink's work item.
pub const SHRINK_RANKS: usize = 16;
/// Rows that share a load of B in an expand.
pub const ROW_TILE: usize = 4;
/// Shared bytes of one row's h in an expand.
pub const RANK_TILE_BYTES: usize = 64 * 4;

macro_rules! arguments {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type,)* })*
    };
}

arguments! {
    Change {
        down_pool: Address, up_pool: Address, down: Address, up: Address, middle: Address,
        end: Address, scale: Address, shift: Address, weight: Address, rank: u32,
        down_shard: u32, down_shards: u32, up_shard: u32,
        up_shards: u32, reserved: u32,
    }
    RowParts { entry: u32, stride: u32, parts: u32, }
    RowTile { first: u32, rows: u32, entry: u32, stride: u32, parts: u32, }
    Deltas {
        changes: Address, entry_slot: Address, entry_weight: Address, rows: Address,
        order: Address, tiles: Address, tile_count: Address, h: Address, plane_stride: u64,
        rank_stride: u32, linears: u32, planes: u32, sites: u32,
    }
    Work { entry: u32, rows: u32, rank_first: u32, }
    Shrink {
        x: Address, work: Address, work_count: Address, entry_row: Address, entry_slot: Address,
        changes: Address, h: Address, plane_stride: u64, rank_stride: u32, linears: u32,
        sites: u32, in_features: u32, k_chunk: u32, splits: u32, site: [u32; LINEARS],
    }
    Expand {
        y: Address, bias: Address, deltas: Deltas, y_stride: u64, site: u32, linear: u32,
        out: u32, reserved: u32,
    }
    Replace {
        x: Address, weight: Address, y: Address, deltas: Deltas, y_stride: u64, site: u32,
        in_features: u32,
        out: u32, reserved: u32,
    }
    SiluMul {
        gate: Address, up: Address, out: Address, gate_bias: Address, up_bias: Address,
        deltas: Deltas, stride: u64, gate_site: u32, up_site: u32, cols: u32, reserved: u32,
    }
    Add { x: Address, y: Address, cols: u32, reserved: u32, }
    Embed {
        tokens: Address, table: Address, shift: Address, out: Address, deltas: Deltas, site: u32,
        hidden: u32,
    }
    GatherRows {
        x: Address, out: Address, rows: Address, x_stride: u64, cols: u32, reserved: u32,
    }
    RmsNorm {
        x: Address, out: Address, weight: Address, shift: Address, deltas: Deltas, site: u32,
        cols: u32, width: u32, eps: f32,
    }
    AddRmsNorm {
        residual: Address, y: Address, bias: Address, deltas: Deltas, site: u32, linear: u32,
        norm: RmsNorm,
    }
    RopeInput {
        x: Address, row_stride: u64, bias: Address, norm_weight: Address,
        norm_shift: Address, heads: u32, site: u32, norm_site: u32, reserved: u32,
    }
    RopeStore {
        q: RopeInput, k: RopeInput, v: RopeInput, deltas: Deltas, cos: Address, sin: Address,
        positions: Address, row_table: Address, block_tables: Address, keys: Address,
        values: Address, block_tokens: u32, head_dim: u32, half: u32, block_heads: u32, eps: f32,
        reserved: u32,
    }
    Fold { from: Address, to: Address, change: Address, cols: u32, embedding: u32, }
    Tile { row: u32, rows: u32, first: u32, before: u32, split_tokens: u32, }
    Attention {
        q: Address, q_stride: u64, out: Address, keys: Address, values: Address,
        positions: Address, row_table: Address, block_tables: Address, tiles: Address,
        tile_count: Address, partial: Address, partial_sums: Address, heads: u32, kv_heads: u32,
        head_dim: u32, block_tokens: u32, window: u32, splits_max: u32, scale: f32,
        reserved: u32,
    }
    SampleParams {
        temperature: f32, top_p: f32, min_p: f32, top_k: u32, seed: u64, step: u64, top: u32,
        ranked: u32, target: u32, mask: u32, seen: u32, repetition_penalty: f32,
        edits_first: u32, edits: u32,
    }
    LogitEdit { token: u32, add: f32, repeat: f32, take: f32, }
    Sample {
        logits: Address, params: Address, tokens: Address, logprobs: Address, ranks: Address,
        masks: Address, edits: Address, top_tokens: Address, top_logprobs: Address,
        vocabulary: u32, top_max: u32,
    }
}
