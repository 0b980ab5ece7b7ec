// Rotary positions, and keys and values into their pages.
#include "common.cuh"

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
        for (u32 i = lane_id(); i < a.head_dim; i += WARP) squares += head[i] * head[i];
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

/// Bias, adapters, norm of each head where there is one, rotation (i with i + half) of q and k;
/// q is written back, k and v go to the row's page.
/// Grid: x = n, y = ceil(q.heads / block_heads) + 2 · ceil(k.heads / block_heads).
/// Block: 128, or fewer whole warps; block_heads = max(1, 1024 / head_dim) keeps 128 threads busy.
/// Shared: (RANK_TILE + block_heads · head_dim) · 4 bytes.
KERNEL(rope_store, RopeStore, 128) {
    float* h_tile = (float*)SHARED_MEMORY;
    float* heads = h_tile + RANK_TILE;
    u32 row = blockIdx.x;
    u32 q_tiles = ceil_div(args.q.heads, args.block_heads);
    u32 k_tiles = ceil_div(args.k.heads, args.block_heads);
    u32 linear = blockIdx.y < q_tiles ? 0 : blockIdx.y < q_tiles + k_tiles ? 1 : 2;
    const RopeInput& in = linear == 0 ? args.q : linear == 1 ? args.k : args.v;
    u32 tile = blockIdx.y - (linear == 0 ? 0 : linear == 1 ? q_tiles : q_tiles + k_tiles);
    u32 first_head = tile * args.block_heads;
    u32 head_count = smaller(args.block_heads, in.heads - first_head);
    u32 start = first_head * args.head_dim, columns = head_count * args.head_dim;
    X* x = in.x + row * in.row_stride + start;

    HiddenPlanes hidden = {linear};
    for (u32 first = 0; first < columns; first += blockDim.x * LANE_COLUMNS) {
        u32 column = first + threadIdx.x * LANE_COLUMNS;
        u32 count = column < columns ? smaller(LANE_COLUMNS, columns - column) : 0;
        float y[8];
        load8(x + column, count, y);
        if (in.bias)
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (i < count) y[i] += in.bias[start + column + i];
        apply_deltas(args.deltas, row, in.site, hidden, start + column, count, y, h_tile);
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (i < count) heads[column + i] = rounded(y[i]);
    }
    __syncthreads();

    u32 position = args.positions[row];
    u32 page = args.block_tables[args.row_table[row] + position / args.block_tokens];
    for (u32 i = warp_id(); i < head_count; i += blockDim.x / WARP) {
        float* head = heads + i * args.head_dim;
        finish_head(args, in, row, linear != 2, head);
        if (linear == 0) {
            write_head(args, head, x + i * args.head_dim);
            continue;
        }
        u64 cell = ((u64)page * in.heads + first_head + i) * args.block_tokens;
        cell += position % args.block_tokens;
        write_head(args, head, (linear == 1 ? args.keys : args.values) + cell * args.head_dim);
    }
}

EXPORT(rope_store)
