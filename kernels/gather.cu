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
        return widen(c.pool[(u64)offsets[token / c.down_shard] + token % c.down_shard]);
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

/// Each row's token from the table, then its adapters. An adapter's own table is read in place of
/// the base's for rows of one part; longer compositions with one are refused by the host.
/// Grid: x = n, y = ceil(hidden / (8 · block)). Block: 128, or fewer. Shared: RANK_TILE · 4 bytes.
KERNEL(embed, Embed, 128) {
    u32 row = blockIdx.x, token = args.tokens[row];
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < args.hidden ? smaller(LANE_COLUMNS, args.hidden - column) : 0;
    const Deltas& d = args.deltas;
    RowParts parts = d.rows ? d.rows[row] : RowParts{0, 0, 0};
    RowTile tile = {row, 1, parts.entry, parts.stride, parts.parts};
    const P* own = nullptr;
    if (parts.parts == 1) own = (const P*)change_at(d, parts.entry, args.site).weight;
    float y[1][8];
    if (own)
        embed_from(args, tile, own, token, column, count, y);
    else
        embed_from(args, tile, args.table, token, column, count, y);
    store8(args.out + (u64)row * args.hidden + column, count, y[0]);
}

struct GatherRows {
    /// [any, cols].
    const X* x;
    /// [m, cols].
    X* out;
    /// [m]: rows of x.
    const u32* rows;
    u32 cols;
    u32 reserved;
};

/// out[i] = x[rows[i]], bit for bit.
/// Grid: x = m, y = ceil(cols / (8 · block)). Block: 128, or fewer. Shared: none.
KERNEL(gather_rows, GatherRows, 128) {
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    if (column >= args.cols) return;
    u32 count = smaller(LANE_COLUMNS, args.cols - column);
    const X* from = args.x + (u64)args.rows[blockIdx.x] * args.cols + column;
    X* to = args.out + (u64)blockIdx.x * args.cols + column;
    if (sizeof(X) == 2 && count == 8 && aligned16(from) && aligned16(to)) {
        *(Bits16*)to = load16(from);
        return;
    }
    for (u32 i = 0; i < count; i++) to[i] = from[i];
}

EXPORT(embed)
EXPORT(gather_rows)
