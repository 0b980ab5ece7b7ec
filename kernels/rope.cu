// Rotary positions, and keys and values into their pages.
#include "deltas.cuh"

/// One of q, k, v.
struct RopeInput {
    /// Row i starts at x + i · row_stride; q is written back in place.
    X* x;
    u64 row_stride;
    /// [heads · head_dim], or null.
    const float* bias;
    /// [head_dim] of a norm of each head, or null; never of v.
    const float* norm_weight;
    /// [head_dim], added after that weight, or null.
    const float* norm_shift;
    u32 heads;
    /// Of the linear, and of the norm.
    u32 site;
    u32 norm_site;
    u32 reserved;
};

struct RopeStore {
    RopeInput q;
    RopeInput k;
    RopeInput v;
    /// Of the group (q, k, v): linears 0, 1, 2.
    Deltas deltas;
    /// [positions, half].
    const float* cos;
    const float* sin;
    /// [n].
    const u32* positions;
    /// [n]: where the row's sequence starts in block_tables.
    const u32* row_table;
    /// Pages of positions 0 …, block_tokens a page.
    const u32* block_tables;
    /// [blocks, kv_heads, block_tokens, head_dim] of one layer.
    KV* keys;
    KV* values;
    u32 block_tokens;
    u32 head_dim;
    /// At most head_dim / 2; columns from 2 · half on are not rotated.
    u32 half;
    /// Heads that one block takes.
    u32 block_heads;
    float eps;
    u32 reserved;
};

/// One head in shared memory, by one warp: norm and rotation in place.
DEVICE void finish_head(const RopeStore& a, const RopeInput& in, u32 row, bool rotate,
                        float* head) {
    if (in.norm_weight) {
        float squares = 0.0f;
        // In the order of rms_norm with one warp: bits do not depend on which of the two ran.
        u32 step = WARP * LANE_COLUMNS;
        for (u32 first = lane_id() * LANE_COLUMNS; first < a.head_dim; first += step) {
            u32 end = smaller(first + LANE_COLUMNS, a.head_dim);
            for (u32 i = first; i < end; i++) squares += head[i] * head[i];
        }
        squares = warp_reduce(squares, Sum());
        float factor = 1.0f / sqrtf(squares / (float)a.head_dim + a.eps);
        for (u32 i = lane_id(); i < a.head_dim; i += WARP) {
            float shift = in.norm_shift ? in.norm_shift[i] : 0.0f;
            head[i] = rounded(norm_column(a.deltas, row, in.norm_site, head[i] * factor,
                                          in.norm_weight[i], shift, i));
        }
        __syncwarp();
    }
    if (!rotate) return;
    u64 at = (u64)a.positions[row] * a.half;
    for (u32 i = lane_id(); i < a.half; i += WARP) {
        float c = a.cos[at + i], s = a.sin[at + i];
        float low = head[i], high = head[i + a.half];
        head[i] = low * c - high * s;
        head[i + a.half] = high * c + low * s;
    }
    __syncwarp();
}

template <class T>
DEVICE void write_head(const RopeStore& a, const float* head, T* to) {
    for (u32 i = lane_id(); i < a.head_dim; i += WARP) to[i] = narrow<T>(head[i]);
}

template <u32 R>
DEVICE void rope_rows(const RopeStore& a, const RowTile& tile, float* h_tile, float* heads) {
    u32 q_tiles = ceil_div(a.q.heads, a.block_heads);
    u32 k_tiles = ceil_div(a.k.heads, a.block_heads);
    u32 linear = blockIdx.y < q_tiles ? 0 : blockIdx.y < q_tiles + k_tiles ? 1 : 2;
    const RopeInput& in = linear == 0 ? a.q : linear == 1 ? a.k : a.v;
    u32 before = linear == 0 ? 0 : linear == 1 ? q_tiles : q_tiles + k_tiles;
    u32 first_head = (blockIdx.y - before) * a.block_heads;
    u32 head_count = smaller(a.block_heads, in.heads - first_head);
    u32 start = first_head * a.head_dim, columns = head_count * a.head_dim;
    u32 row[R];
    rows_of(a.deltas, tile, row);
    HiddenPlanes hidden = {linear};
    for (u32 first = 0; first < columns; first += blockDim.x * LANE_COLUMNS) {
        u32 column = first + threadIdx.x * LANE_COLUMNS;
        u32 count = column < columns ? smaller(LANE_COLUMNS, columns - column) : 0;
        auto from = [&](u32 i) { return in.x + row[i] * in.row_stride + start + column; };
        float y[R][8];
        site_output<R>(a.deltas, tile, in.site, hidden, in.bias, start + column, count, from,
                          h_tile, y);
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            if (i >= tile.rows) break;
#pragma unroll
            for (u32 j = 0; j < 8; j++)
                if (j < count) heads[i * columns + column + j] = rounded(y[i][j]);
        }
    }
    __syncthreads();

    for (u32 i = warp_id(); i < tile.rows * head_count; i += blockDim.x / WARP) {
        float* head = heads + i * a.head_dim;
        u32 of_tile = i % head_count, at = i / head_count;
        u32 row = a.deltas.rows ? a.deltas.order[tile.first + at] : tile.first;
        finish_head(a, in, row, linear != 2, head);
        if (linear == 0) {
            write_head(a, head, in.x + row * in.row_stride + start + of_tile * a.head_dim);
            continue;
        }
        u32 position = a.positions[row];
        u32 page = a.block_tables[a.row_table[row] + position / a.block_tokens];
        u64 cell = ((u64)page * in.heads + first_head + of_tile) * a.block_tokens;
        cell += position % a.block_tokens;
        write_head(a, head, (linear == 1 ? a.keys : a.values) + cell * a.head_dim);
    }
}

/// Bias, norm of each head where there is one, rotation (i with i + half) of q and k; q is written
/// back, k and v go to the row's page. For steps without adapters.
/// Grid: x = n, y = ceil(q.heads / block_heads) + 2 · ceil(k.heads / block_heads).
/// Block: 128, or fewer whole warps; block_heads = max(1, 1024 / head_dim) keeps 128 threads busy.
/// Shared: block_heads · head_dim · 4 bytes.
KERNEL(rope_store, RopeStore, 128) {
    rope_rows<1>(args, bare_tile(blockIdx.x), nullptr, (float*)SHARED_MEMORY);
}

/// The same, adapters after each bias.
/// Grid: x ≥ tiles, y as above. Block: as above.
/// Shared: (RANK_TILE + block_heads · head_dim) · ROW_TILE · 4 bytes.
KERNEL(rope_store_tiles, RopeStore, 128) {
    float* h_tile = (float*)SHARED_MEMORY;
    float* heads = h_tile + RANK_TILE * ROW_TILE;
    RowTile tile = tile_at(args.deltas, blockIdx.x);
    if (tile.rows == 1)
        rope_rows<1>(args, tile, h_tile, heads);
    else if (tile.rows > 1)
        rope_rows<ROW_TILE>(args, tile, h_tile, heads);
}

EXPORT(rope_store)
EXPORT(rope_store_tiles)
