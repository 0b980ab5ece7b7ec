// Adapters: h = A x gathered from the pool (shrink), and y = scale ⊙ (y + B h) + shift (expand).
#include "deltas.cuh"

/// Linears that share one x at most.
const u32 LINEARS_MAX = 4;
/// Ranks of one work item: the height of an mma.
const u32 SHRINK_RANKS = 16;
/// Entries of one work item at most: four times the width of an mma.
const u32 SHRINK_ROWS = 32;
const u32 SHRINK_WARPS = 4;

/// `rows` (1 … SHRINK_ROWS) entries of one adapter, and SHRINK_RANKS ranks from `rank_first`.
struct Work {
    u32 entry;
    u32 rows;
    u32 rank_first;
};

/// Work at one linear of the group, over columns split · k_chunk … of x.
struct Item {
    u32 entry;
    u32 rows;
    u32 rank_first;
    u32 linear;
    u32 split;
};

struct Shrink {
    /// [n, in].
    const X* x;
    /// [work_count].
    const Work* work;
    const u32* work_count;
    /// Row of x of each entry.
    const u32* entry_row;
    const u32* entry_slot;
    /// [slots, sites].
    const Change* changes;
    /// As in Deltas; plane = split.
    float* h;
    u64 plane_stride;
    u32 rank_stride;
    u32 linears;
    u32 sites;
    u32 in;
    /// Columns of one split.
    u32 k_chunk;
    /// One that begins beyond `in` is a plane of zeros.
    u32 splits;
    /// Site of each linear of the group.
    u32 site[LINEARS_MAX];
};

DEVICE float* hidden_at(const Shrink& s, const Item& w, u32 row, u32 rank) {
    u64 entry = ((u64)(w.entry + row) * s.linears + w.linear) * s.rank_stride;
    return s.h + w.split * s.plane_stride + entry + rank;
}

/// 8 numbers of A as they stand; those from `count` on are 0.
template <class T>
DEVICE Bits16 down8_bits(const Change& c, u32 rank, u32 k, u32 count) {
    Bits16 all = {{0, 0, 0, 0}};
    if (rank >= c.rank || count == 0) return all;
    const u32* offsets = c.down + (u64)rank * c.down_shards;
    const T* at = (const T*)gathered(c.down_pool, offsets, c.down_shard, k, count);
    if (at) return load8_bits(at, count);
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (i >= count) continue;
        u32 column = k + i;
        u64 offset = (u64)offsets[column / c.down_shard] + column % c.down_shard;
        const T* p = (const T*)c.down_pool + offset;
        all.word[i / 2] |= (u32)p->bits << (i % 2 * 16);
    }
    return all;
}

/// On tensor cores. A lane's 16 bytes of A and of x fill the same k of both operands, so neither
/// passes through shared memory: which k is which does not matter to a sum.
template <class T>
DEVICE void shrink_mma(const Shrink& s, const Item& w, const Change& c, u32 k_end, float* partial) {
    const u32 tiles = SHRINK_ROWS / 8;
    u32 g = lane_id() / 4, t = lane_id() % 4;
    float acc[tiles][4] = {};
    const T* x[tiles];
#pragma unroll
    for (u32 tile = 0; tile < tiles; tile++) {
        u32 row = tile * 8 + g;
        x[tile] = row < w.rows ? (const T*)s.x + (u64)s.entry_row[w.entry + row] * s.in : nullptr;
    }
#pragma unroll 4
    for (u32 k0 = w.split * s.k_chunk + warp_id() * 32; k0 < k_end; k0 += SHRINK_WARPS * 32) {
        u32 k = k0 + t * 8;
        u32 count = k < k_end ? smaller(8, k_end - k) : 0;
        Bits16 low = down8_bits<T>(c, w.rank_first + g, k, count);
        Bits16 high = down8_bits<T>(c, w.rank_first + g + 8, k, count);
        const u32 first[4] = {low.word[0], high.word[0], low.word[1], high.word[1]};
        const u32 second[4] = {low.word[2], high.word[2], low.word[3], high.word[3]};
#pragma unroll
        for (u32 tile = 0; tile < tiles; tile++) {
            if (tile * 8 >= w.rows) continue;
            Bits16 all = {{0, 0, 0, 0}};
            if (x[tile]) all = load8_bits(x[tile] + k, count);
            const u32 b0[2] = {all.word[0], all.word[1]};
            const u32 b1[2] = {all.word[2], all.word[3]};
            mma<T>(acc[tile], first, b0);
            mma<T>(acc[tile], second, b1);
        }
    }
    // Each warp summed a part of the columns: [warps, ranks, rows].
    float* mine = partial + warp_id() * SHRINK_RANKS * SHRINK_ROWS;
#pragma unroll
    for (u32 tile = 0; tile < tiles; tile++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 rank = g + i / 2 * 8, row = tile * 8 + t * 2 + i % 2;
            mine[rank * SHRINK_ROWS + row] = acc[tile][i];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < SHRINK_RANKS * w.rows; i += blockDim.x) {
        u32 rank = i % SHRINK_RANKS, row = i / SHRINK_RANKS;
        float sum = 0.0f;
        for (u32 warp = 0; warp < SHRINK_WARPS; warp++)
            sum += partial[(warp * SHRINK_RANKS + rank) * SHRINK_ROWS + row];
        if (w.rank_first + rank < c.rank) *hidden_at(s, w, row, w.rank_first + rank) = sum;
    }
    // The next work item writes the partial sums again.
    __syncthreads();
}

/// For widths that tensor cores do not multiply: a warp a rank, its lanes along the columns.
DEVICE void shrink_any(const Shrink& s, const Item& w, const Change& c, u32 k_end) {
    const u32 together = 4;
    for (u32 i = warp_id(); i < SHRINK_RANKS; i += SHRINK_WARPS) {
        u32 rank = w.rank_first + i;
        if (rank >= c.rank) break;
        const u32* offsets = c.down + (u64)rank * c.down_shards;
        for (u32 first = 0; first < w.rows; first += together) {
            float acc[together] = {};
            for (u32 k = w.split * s.k_chunk + lane_id() * 8; k < k_end; k += WARP * 8) {
                u32 count = smaller(8, k_end - k);
                float a[8], x[8];
                gather8(c.down_pool, offsets, c.down_shard, k, count, a);
#pragma unroll
                for (u32 row = 0; row < together; row++) {
                    if (first + row >= w.rows) continue;
                    u64 at = (u64)s.entry_row[w.entry + first + row] * s.in;
                    load8(s.x + at + k, count, x);
#pragma unroll
                    for (u32 j = 0; j < 8; j++) acc[row] += a[j] * x[j];
                }
            }
#pragma unroll
            for (u32 row = 0; row < together; row++) {
                float sum = warp_reduce(acc[row], Sum());
                if (lane_id() == 0 && first + row < w.rows)
                    *hidden_at(s, w, first + row, rank) = sum;
            }
        }
    }
}

/// h = A x for every work item, linear of the group and split. The list covers, for each entry,
/// every tile of SHRINK_RANKS ranks up to at least the adapter's largest rank: then all of h that
/// an expand reads is written. Items beyond an adapter's rank cost nothing.
/// Grid: any x (blocks take items in turn), so a captured graph stays valid.
/// Block: 128. Shared: 4 · 16 · 32 · 4 = 8192 bytes.
KERNEL(delta_shrink, Shrink, 128) {
    float* partial = (float*)SHARED_MEMORY;
    u32 items = *args.work_count * args.linears * args.splits;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        Work work = args.work[item / (args.linears * args.splits)];
        Item w = {work.entry, work.rows, work.rank_first, item / args.splits % args.linears,
                  item % args.splits};
        u64 slot = args.entry_slot[w.entry];
        const Change& c = args.changes[slot * args.sites + args.site[w.linear]];
        if (!c.down || w.rank_first >= c.rank) continue;
        u64 end = (u64)(w.split + 1) * args.k_chunk;
        u32 k_end = end < args.in ? (u32)end : args.in;
        if constexpr (sizeof(X) == 2 && Same<X, P>::yes)
            shrink_mma<X>(args, w, c, k_end, partial);
        else
            shrink_any(args, w, c, k_end);
    }
}

struct Expand {
    /// [n, out], in place: X, or float in delta_expand_float; row i starts at y + i · y_stride.
    void* y;
    /// [out], or null.
    const float* bias;
    /// Rows that no tile has stay as they are.
    Deltas deltas;
    u64 y_stride;
    u32 site;
    u32 linear;
    u32 out;
    u32 reserved;
};

template <u32 R, class Y>
DEVICE void expand_rows(const Expand& e, const RowTile& tile, float* h_tile) {
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < e.out ? smaller(LANE_COLUMNS, e.out - column) : 0;
    u32 row[R];
    rows_of(e.deltas, tile, row);
    HiddenPlanes hidden = {e.linear};
    auto at = [&](u32 i) { return (Y*)e.y + row[i] * e.y_stride + column; };
    float y[R][8];
    site_output<R>(e.deltas, tile, e.site, hidden, e.bias, column, count, at, h_tile, y);
#pragma unroll
    for (u32 i = 0; i < R; i++)
        if (i < tile.rows) store8(at(i), count, y[i]);
}

template <class Y>
DEVICE void expand(const Expand& args) {
    float* h_tile = (float*)SHARED_MEMORY;
    RowTile tile = tile_at(args.deltas, blockIdx.x);
    if (tile.rows == 1)
        expand_rows<1, Y>(args, tile, h_tile);
    else if (tile.rows > 1)
        expand_rows<ROW_TILE, Y>(args, tile, h_tile);
}

/// y ← scale ⊙ (y + bias + B h) + shift, for readers of y that do not absorb it.
/// Grid: x ≥ tiles (without adapters: n), y = ceil(out / (8 · block)).
/// Block: 128, or fewer. Shared: RANK_TILE · ROW_TILE · 4 = 1024 bytes.
KERNEL(delta_expand, Expand, 128) { expand<X>(args); }
/// The same for y in f32: logits.
KERNEL(delta_expand_float, Expand, 128) { expand<float>(args); }

struct Replace {
    /// [n, in].
    const X* x;
    /// [out, in]: the base's. Read by delta_mix alone.
    const X* weight;
    /// [n, out]: X, or float in the kernels named so. Row i starts at y + i · y_stride.
    void* y;
    /// Its h is not read.
    Deltas deltas;
    u64 y_stride;
    u32 site;
    u32 in;
    u32 out;
    u32 reserved;
};

/// Whether a tile's rows carry one adapter as it is.
DEVICE bool is_alone(const Deltas& d, const RowTile& tile) {
    return tile.parts == 1 && d.entry_weight[tile.entry] == 1.0f;
}

template <class Y>
DEVICE void replace(const Replace& args) {
    const u32 together = 4;
    u32 column = blockIdx.y * (blockDim.x / WARP) + warp_id();
    const Deltas& d = args.deltas;
    RowTile tile = tile_at(d, blockIdx.x);
    if (column >= args.out || !is_alone(d, tile)) return;
    const P* weight = (const P*)change_at(d, tile.entry, args.site).weight;
    if (!weight) return;
    weight += (u64)column * args.in;
    for (u32 first = 0; first < tile.rows; first += together) {
        float acc[together] = {};
        for (u32 k = lane_id() * 8; k < args.in; k += WARP * 8) {
            u32 count = smaller(8, args.in - k);
            float w[8], x[8];
            load8(weight + k, count, w);
#pragma unroll
            for (u32 row = 0; row < together; row++) {
                if (first + row >= tile.rows) continue;
                load8(args.x + (u64)d.order[tile.first + first + row] * args.in + k, count, x);
#pragma unroll
                for (u32 j = 0; j < 8; j++) acc[row] += w[j] * x[j];
            }
        }
#pragma unroll
        for (u32 row = 0; row < together; row++) {
            float sum = warp_reduce(acc[row], Sum());
            if (lane_id() != 0 || first + row >= tile.rows) continue;
            u64 at = d.order[tile.first + first + row] * args.y_stride;
            ((Y*)args.y)[at + column] = narrow<Y>(sum);
        }
    }
}

/// y ← W x with the adapter's own W, for rows that carry one adapter as it is, at a site whose
/// weight it replaces; run before the expand. A warp takes one output of a tile's rows.
/// Grid: x ≥ tiles, y = ceil(out / (block / 32)). Block: 128, or fewer whole warps. Shared: none.
KERNEL(delta_replace, Replace, 128) { replace<X>(args); }
/// The same for y in f32: logits.
KERNEL(delta_replace_float, Replace, 128) { replace<float>(args); }

template <class Y>
DEVICE void mix(const Replace& args) {
    u32 column = blockIdx.y * (blockDim.x / WARP) + warp_id();
    const Deltas& d = args.deltas;
    RowTile tile = tile_at(d, blockIdx.x);
    if (column >= args.out || tile.parts == 0 || is_alone(d, tile)) return;
    const X* base = args.weight + (u64)column * args.in;
    for (u32 i = 0; i < tile.rows; i++) {
        u32 row = d.order[tile.first + i];
        const X* x_row = args.x + (u64)row * args.in;
        float sum = 0.0f;
        for (u32 part = 0; part < tile.parts; part++) {
            u32 entry = tile.entry + i + part * tile.stride;
            const Change& c = change_at(d, entry, args.site);
            if (!c.weight) continue;
            const P* own = (const P*)c.weight + (u64)column * args.in;
            float acc = 0.0f;
            for (u32 k = lane_id() * 8; k < args.in; k += WARP * 8) {
                u32 count = smaller(8, args.in - k);
                float w[8], b[8], x[8];
                load8(own + k, count, w);
                load8(base + k, count, b);
                load8(x_row + k, count, x);
#pragma unroll
                for (u32 j = 0; j < 8; j++) acc += (w[j] - b[j]) * x[j];
            }
            float scale = c.scale ? c.scale[column] : 1.0f;
            sum += d.entry_weight[entry] * scale * warp_reduce(acc, Sum());
        }
        Y* at = (Y*)args.y + row * args.y_stride + column;
        if (lane_id() == 0) *at = narrow<Y>(widen(*at) + sum);
    }
}

/// y ← y + Σ w · scale ⊙ (W' − W) x over the parts that have a weight W' of their own, for rows
/// that carry several adapters or one of another weight than 1; run after the expand, which leaves
/// just this out. Grid and block: as delta_replace.
KERNEL(delta_mix, Replace, 128) { mix<X>(args); }
/// The same for y in f32: logits.
KERNEL(delta_mix_float, Replace, 128) { mix<float>(args); }

EXPORT(delta_shrink)
EXPORT(delta_expand)
EXPORT(delta_expand_float)
EXPORT(delta_replace)
EXPORT(delta_replace_float)
EXPORT(delta_mix)
EXPORT(delta_mix_float)
