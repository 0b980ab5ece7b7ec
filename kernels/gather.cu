// Rows picked by an index: token embeddings, and the rows whose logits are wanted.
#include "deltas.cuh"

struct Embed {
    /// [n].
    const u32* tokens;
    /// [vocabulary, hidden].
    const X* table;
    /// [hidden], or null.
    const float* shift;
    /// [n, hidden].
    X* out;
    /// `h`, `plane_stride`, `rank_stride`, `linears` and `planes` are not read, nor are the tiles.
    Deltas deltas;
    u32 site;
    u32 hidden;
};

/// x is one-hot at an embedding, so A x is a column of A.
struct HiddenColumn {
    u32 token;

    DEVICE float operator()(const Deltas&, const Change& c, u32, u32 r) const {
        const u32* offsets = c.down + (u64)r * c.down_shards;
        return widen(c.down_pool[(u64)offsets[token / c.down_shard] + token % c.down_shard]);
    }
};

/// One token's row of a table, in the width of the base or of adapters, then the row's adapters.
template <class T>
DEVICE void embed_from(const Embed& a, const RowTile& tile, const T* table, u32 token, u32 column,
                       u32 count, float (&y)[1][8]) {
    const T* at = table + (u64)token * a.hidden + column;
    auto from = [&](u32) { return at; };
    HiddenColumn hidden = {token};
    float* h_tile = (float*)SHARED_MEMORY;
    site_output<1>(a.deltas, tile, a.site, hidden, a.shift, column, count, from, h_tile, y);
}

/// What own tables add in a row of several adapters, or of one of another weight than 1:
/// Σ w · scale ⊙ (E'[token] − E[token]).
DEVICE void mix_tables(const Embed& a, const RowParts& parts, u32 token, u32 column, u32 count,
                       float (&y)[8]) {
    u64 at = (u64)token * a.hidden + column;
    for (u32 part = 0; part < parts.parts; part++) {
        u32 entry = parts.entry + part * parts.stride;
        const Change& c = change_at(a.deltas, entry, a.site);
        if (!c.weight) continue;
        float own[8], base[8];
        load8((const P*)c.weight + at, count, own);
        load8(a.table + at, count, base);
        float weight = a.deltas.entry_weight[entry];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (i >= count) continue;
            float scale = c.scale ? c.scale[column + i] : 1.0f;
            y[i] += weight * scale * (own[i] - base[i]);
        }
    }
}

/// Each row's token from the table, then its adapters. In rows that carry one adapter as it is, its
/// own table is read in place of the base's.
/// Grid: x = n, y = ceil(hidden / (8 · block)). Block: 128, or fewer. Shared: RANK_TILE · 4 bytes.
KERNEL(embed, Embed, 128) {
    u32 row = blockIdx.x, token = args.tokens[row];
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < args.hidden ? smaller(LANE_COLUMNS, args.hidden - column) : 0;
    const Deltas& d = args.deltas;
    RowParts parts = d.rows ? d.rows[row] : RowParts{0, 0, 0};
    RowTile tile = {row, 1, parts.entry, parts.stride, parts.parts};
    bool alone = parts.parts == 1 && d.entry_weight[parts.entry] == 1.0f;
    const P* own = alone ? (const P*)change_at(d, parts.entry, args.site).weight : nullptr;
    float y[1][8];
    if (own) {
        embed_from(args, tile, own, token, column, count, y);
    } else {
        embed_from(args, tile, args.table, token, column, count, y);
        if (!alone) mix_tables(args, parts, token, column, count, y[0]);
    }
    store8(args.out + (u64)row * args.hidden + column, count, y[0]);
}

struct GatherRows {
    /// [any, cols]; row i starts at x + i · x_stride.
    const X* x;
    /// [m, cols].
    X* out;
    /// [m]: rows of x; null: all of them in order.
    const u32* rows;
    u64 x_stride;
    u32 cols;
    u32 reserved;
};

/// out[i] = x[rows[i]], bit for bit.
/// Grid: x = m, y = ceil(cols / (8 · block)). Block: 128, or fewer. Shared: none.
KERNEL(gather_rows, GatherRows, 128) {
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    if (column >= args.cols) return;
    u32 count = smaller(LANE_COLUMNS, args.cols - column);
    u32 row = args.rows ? args.rows[blockIdx.x] : blockIdx.x;
    const X* from = args.x + row * args.x_stride + column;
    X* to = args.out + (u64)blockIdx.x * args.cols + column;
    if (sizeof(X) == 2 && count == 8 && aligned16(from) && aligned16(to)) {
        *(Bits16*)to = load16(from);
        return;
    }
    for (u32 i = 0; i < count; i++) to[i] = from[i];
}

EXPORT(embed)
EXPORT(gather_rows)
