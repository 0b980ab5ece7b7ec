// Merged mode: an adapter's change of a weight, written into the weight.
#include "deltas.cuh"

struct Fold {
    /// [rows, cols] of the base.
    const X* from;
    /// [rows, cols]; may be `from`.
    X* to;
    const Change* change;
    u32 cols;
    /// A table of tokens, and not a linear's [out, in].
    u32 embedding;
};

/// A linear's W' = scale ⊙ (W + end ⊙ B (middle ⊙ A)), scale and end by row; a table's
/// E' = scale ⊙ (E + (end ⊙ B (middle ⊙ A))ᵀ), both by column. An own weight stands in for `from`.
/// Summed in f32, rounded once. Grid: x = rows, y = ceil(cols / (8 · block)). Block: 128, or fewer.
/// Shared: RANK_TILE · 4 bytes.
KERNEL(fold, Fold, 128) {
    float* share = (float*)SHARED_MEMORY;
    const Change& c = *args.change;
    u32 row = blockIdx.x;
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < args.cols ? smaller(LANE_COLUMNS, args.cols - column) : 0;
    u64 at = (u64)row * args.cols + column;
    float y[8];
    if (c.weight)
        load8((const P*)c.weight + at, count, y);
    else
        load8(args.from + at, count, y);
    // Row `row` of B A is a sum of rows of A, each with its share from B; of a table the reverse.
    const u32* shares = args.embedding ? c.down : c.up;
    const u32* rows = args.embedding ? c.up : c.down;
    const P* share_pool = args.embedding ? c.down_pool : c.up_pool;
    const P* row_pool = args.embedding ? c.up_pool : c.down_pool;
    u32 share_shard = args.embedding ? c.down_shard : c.up_shard;
    u32 share_shards = args.embedding ? c.down_shards : c.up_shards;
    u32 row_shard = args.embedding ? c.up_shard : c.down_shard;
    u32 row_shards = args.embedding ? c.up_shards : c.down_shards;
    u32 rank = shares && rows ? c.rank : 0;
    // By row, a share has it; by column, the sum alone must.
    bool end_by_column = c.end && args.embedding;
    float row_end = c.end && !args.embedding ? c.end[row] : 1.0f;
    float sum[8] = {};
    for (u32 first = 0; first < rank; first += RANK_TILE) {
        u32 ranks = smaller(RANK_TILE, rank - first);
        __syncthreads();
        for (u32 r = threadIdx.x; r < ranks; r += blockDim.x) {
            const u32* offsets = shares + (u64)(first + r) * share_shards;
            float s = widen(share_pool[(u64)offsets[row / share_shard] + row % share_shard]);
            share[r] = (c.middle ? s * c.middle[first + r] : s) * row_end;
        }
        __syncthreads();
        if (count == 0) continue;
        for (u32 r = 0; r < ranks; r++) {
            float v[8];
            gather8(row_pool, rows + (u64)(first + r) * row_shards, row_shard, column, count, v);
#pragma unroll
            for (u32 i = 0; i < 8; i++) (end_by_column ? sum[i] : y[i]) += share[r] * v[i];
        }
    }
    if (end_by_column)
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (i < count) y[i] += c.end[column + i] * sum[i];
    if (c.scale)
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (i < count) y[i] *= c.scale[args.embedding ? column + i : row];
    store8(args.to + at, count, y);
}

EXPORT(fold)
