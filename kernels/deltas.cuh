// Adapters inside of other kernels: what a step's rows carry, gathers from a pool, and a linear's
// output for the rows of one adapter, which share each load of B.
//
// Rows are grouped by what they carry: a list of (slot, weight) parts, usually one. A group of n
// rows with m parts owns m · n consecutive entries; part j of its row i is entry
// first + j · n + i. So the rows of one adapter are consecutive entries.
#pragma once
#include "common.cuh"

/// Ranks whose h a block keeps in shared memory at a time.
const u32 RANK_TILE = 64;
/// Rows that share a load of B at most.
const u32 ROW_TILE = 4;
/// Ranks of B that a thread asks for before it needs the first.
const u32 RANKS_TOGETHER = 4;

/// What one adapter does at one site; all zeros where it does nothing. 96 bytes.
struct Change {
    /// Parameters that A gathers from, and B.
    const P* down_pool;
    const P* up_pool;
    /// Offsets into down_pool, in elements: [rank, down_shards]. Null: no low-rank part.
    const u32* down;
    /// Into up_pool: [rank, up_shards].
    const u32* up;
    /// [rank]: multiplies A x, or null.
    const float* middle;
    /// [out]: multiplies B (A x), or null.
    const float* end;
    /// [out], or null.
    const float* scale;
    /// [out], or null.
    const float* shift;
    /// Stands in for the base's weight, or null: f32 [width] at a norm, P [out, in] at a linear,
    /// P [vocabulary, hidden] at an embedding.
    const void* weight;
    u32 rank;
    /// Elements of one shard, and shards of one row.
    u32 down_shard;
    u32 down_shards;
    u32 up_shard;
    u32 up_shards;
    u32 reserved;
};

/// The entries of one row: entry, entry + stride, … `parts` of them; none for the bare base.
struct RowParts {
    u32 entry;
    u32 stride;
    u32 parts;
};

/// Rows order[first … first + rows], at most ROW_TILE, that carry the same: one adapter, or nothing
/// (no parts). A row of several parts has a tile of its own.
struct RowTile {
    u32 first;
    u32 rows;
    /// Of the first row, as in RowParts; the other rows' entries follow.
    u32 entry;
    u32 stride;
    u32 parts;
};

/// A step's adapters, as a kernel that absorbs an expand needs them. 88 bytes.
struct Deltas {
    /// [slots, sites].
    const Change* changes;
    /// [entries].
    const u32* entry_slot;
    /// [entries].
    const float* entry_weight;
    /// [n]; null when the step has no adapters at all, and nothing else is read then.
    const RowParts* rows;
    /// [n]: rows of one adapter together.
    const u32* order;
    /// [tile_count]: every row is in one.
    const RowTile* tiles;
    const u32* tile_count;
    /// Partial sums of A x: plane p, entry e, linear l of the group, rank r is
    /// h[p · plane_stride + e · linears · rank_stride + l · rank_stride + r].
    const float* h;
    u64 plane_stride;
    u32 rank_stride;
    u32 linears;
    u32 planes;
    u32 sites;
};

DEVICE const Change& change_at(const Deltas& d, u32 entry, u32 site) {
    return d.changes[(u64)d.entry_slot[entry] * d.sites + site];
}

/// A row of a step without adapters.
DEVICE RowTile bare_tile(u32 row) { return {row, 1, 0, 0, 0}; }

/// What block x of a kernel that takes a tile a block has to do: no rows beyond the last tile, one
/// row a block when nothing has an adapter.
DEVICE RowTile tile_at(const Deltas& d, u32 index) {
    if (!d.rows) return bare_tile(index);
    if (index >= *d.tile_count) return {0, 0, 0, 0, 0};
    return d.tiles[index];
}

/// The rows of a tile; 0 stands behind the last.
template <u32 R>
DEVICE void rows_of(const Deltas& d, const RowTile& tile, u32 (&row)[R]) {
#pragma unroll
    for (u32 i = 0; i < R; i++)
        row[i] = !d.rows ? tile.first : i < tile.rows ? d.order[tile.first + i] : 0;
}

/// Rank r of A x at one linear of the group: planes are summed in their order.
struct HiddenPlanes {
    u32 linear;

    DEVICE float operator()(const Deltas& d, const Change&, u32 entry, u32 r) const {
        u64 at = ((u64)entry * d.linears + linear) * d.rank_stride + r;
        float sum = 0.0f;
        for (u32 plane = 0; plane < d.planes; plane++) sum += d.h[plane * d.plane_stride + at];
        return sum;
    }
};

/// Where the first of `count` numbers of a gathered row stands; null when they span shards.
DEVICE const P* gathered(const P* pool, const u32* offsets, u32 shard, u32 column, u32 count) {
    // The usual case, without a division.
    if (column + count <= shard) return pool + offsets[0] + column;
    u32 within = column % shard;
    return within + count <= shard ? pool + offsets[column / shard] + within : nullptr;
}

/// 8 numbers of a gathered row from `column` on, as they stand; those from `count` on are 0.
DEVICE Raw8<P> gather8_raw(const P* pool, const u32* offsets, u32 shard, u32 column, u32 count) {
    const P* at = gathered(pool, offsets, shard, column, count);
    if (at) return load8_raw(at, count);
    Raw8<P> raw;
    P* each = (P*)&raw;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 c = column + i;
        each[i] = i < count ? pool[(u64)offsets[c / shard] + c % shard] : narrow<P>(0.0f);
    }
    return raw;
}

/// The same, widened.
DEVICE void gather8(const P* pool, const u32* offsets, u32 shard, u32 column, u32 count,
                    float (&v)[8]) {
    widen8(gather8_raw(pool, offsets, shard, column, count), v);
}

/// One part of a composition onto y: `alone` is the canonical form,
/// scale ⊙ (y + end ⊙ bh) + shift; else w · [(scale − 1) ⊙ base + scale ⊙ end ⊙ bh + shift] is
/// added.
DEVICE void add_part(const Change& c, bool alone, float weight, u32 column, u32 count,
                     const float (&base)[8], const float (&bh)[8], float (&y)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (i >= count) continue;
        float scale = c.scale ? c.scale[column + i] : 1.0f;
        float shift = c.shift ? c.shift[column + i] : 0.0f;
        float delta = c.end ? c.end[column + i] * bh[i] : bh[i];
        if (alone)
            y[i] = scale * (y[i] + delta) + shift;
        else
            y[i] += weight * ((scale - 1.0f) * base[i] + scale * delta + shift);
    }
}

/// A norm's output at one column, adapters applied: each part's own weight stands in for the
/// base's, then come its scale and shift.
DEVICE float norm_column(const Deltas& d, u32 row, u32 site, float normed, float weight,
                         float shift, u32 column) {
    float base = normed * weight + shift;
    if (!d.rows) return base;
    RowParts parts = d.rows[row];
    float y = base;
    for (u32 part = 0; part < parts.parts; part++) {
        u32 entry = parts.entry + part * parts.stride;
        const Change& c = change_at(d, entry, site);
        float mine = c.weight ? normed * ((const float*)c.weight)[column] + shift : base;
        if (c.scale) mine *= c.scale[column];
        if (c.shift) mine += c.shift[column];
        float share = d.entry_weight[entry];
        y = parts.parts == 1 && share == 1.0f ? mine : y + share * (mine - base);
    }
    return y;
}

/// bh += B h of consecutive entries of one adapter, columns column … column + count. Each row's sum
/// runs over the ranks in their order, whatever R is. `h_tile`: shared [RANK_TILE, R].
template <u32 R, class Hidden>
DEVICE void add_bh(const Deltas& d, const Change& c, u32 entry, u32 rows, const Hidden& hidden,
                   u32 column, u32 count, float* h_tile, float (&bh)[R][8]) {
    u32 rank = c.up ? c.rank : 0;
    for (u32 first = 0; first < rank; first += RANK_TILE) {
        u32 ranks = smaller(RANK_TILE, rank - first);
        __syncthreads();
        for (u32 i = threadIdx.x; i < ranks * R; i += blockDim.x) {
            u32 row = i / ranks, r = i % ranks;
            float h = row < rows ? hidden(d, c, entry + row, first + r) : 0.0f;
            h_tile[r * R + row] = c.middle ? h * c.middle[first + r] : h;
        }
        __syncthreads();
        if (count == 0) continue;
        for (u32 r0 = 0; r0 < ranks; r0 += RANKS_TOGETHER) {
            Raw8<P> up[RANKS_TOGETHER];
#pragma unroll
            for (u32 k = 0; k < RANKS_TOGETHER; k++) {
                if (r0 + k >= ranks) break;
                const u32* offsets = c.up + (u64)(first + r0 + k) * c.up_shards;
                up[k] = gather8_raw(c.up_pool, offsets, c.up_shard, column, count);
            }
#pragma unroll
            for (u32 k = 0; k < RANKS_TOGETHER; k++) {
                if (r0 + k >= ranks) break;
                float b[8];
                widen8(up[k], b);
#pragma unroll
                for (u32 row = 0; row < R; row++)
#pragma unroll
                    for (u32 i = 0; i < 8; i++) bh[row][i] += h_tile[(r0 + k) * R + row] * b[i];
            }
        }
    }
}

/// A site's output in a tile's rows, columns column … column + count; `from(i)` is where those of
/// row i stand in W x. The whole block calls it with the same tile and site; a thread without
/// columns passes count 0. `bias`: [out], or null. `h_tile`: shared [RANK_TILE, R].
template <u32 R, class Hidden, class From>
DEVICE void site_output(const Deltas& d, const RowTile& tile, u32 site, const Hidden& hidden,
                        const float* bias, u32 column, u32 count, const From& from, float* h_tile,
                        float (&y)[R][8]) {
    typedef typename Pointee<decltype(from(0))>::Type T;
    auto base_of = [&](const Raw8<T>& raw, float(&base)[8]) {
        widen8(raw, base);
        if (bias)
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (i < count) base[i] += bias[column + i];
    };
    if constexpr (R == 1) {
        float base[8];
        base_of(load8_raw<T>(from(0), count), base);
#pragma unroll
        for (u32 i = 0; i < 8; i++) y[0][i] = base[i];
        for (u32 part = 0; part < tile.parts; part++) {
            u32 entry = tile.entry + part * tile.stride;
            const Change& c = change_at(d, entry, site);
            float bh[1][8] = {};
            add_bh(d, c, entry, 1, hidden, column, count, h_tile, bh);
            float weight = d.entry_weight[entry];
            bool alone = tile.parts == 1 && weight == 1.0f;
            add_part(c, alone, weight, column, count, base, bh[0], y[0]);
        }
    } else {
#pragma unroll
        for (u32 row = 0; row < R; row++)
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[row][i] = 0.0f;
        const Change* c = tile.parts ? &change_at(d, tile.entry, site) : nullptr;
        if (c) add_bh(d, *c, tile.entry, tile.rows, hidden, column, count, h_tile, y);
        float weight = c ? d.entry_weight[tile.entry] : 0.0f;
        // All asked for before the first is needed.
        Raw8<T> raw[R];
#pragma unroll
        for (u32 row = 0; row < R; row++)
            raw[row] = load8_raw<T>(from(row), row < tile.rows ? count : 0);
#pragma unroll
        for (u32 row = 0; row < R; row++) {
            float base[8], out[8];
            base_of(raw[row], base);
#pragma unroll
            for (u32 i = 0; i < 8; i++) out[i] = base[i];
            if (c) add_part(*c, weight == 1.0f, weight, column, count, base, y[row], out);
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[row][i] = out[i];
        }
    }
}
