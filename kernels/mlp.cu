// Elementwise kernels between linears.
#include "deltas.cuh"

struct SiluMul {
    /// [n, cols]: the linears' outputs before bias and adapters; row i starts at i · stride.
    const X* gate;
    const X* up;
    /// [n, cols]; may be gate or up where `stride` is `cols`.
    X* out;
    /// [cols], or null.
    const float* gate_bias;
    const float* up_bias;
    /// Of the group (gate, up).
    Deltas deltas;
    u64 stride;
    u32 gate_site;
    u32 up_site;
    u32 cols;
    u32 reserved;
};

template <u32 R>
DEVICE void silu_rows(const SiluMul& a, const RowTile& tile, float* h_tile) {
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < a.cols ? smaller(LANE_COLUMNS, a.cols - column) : 0;
    u32 row[R];
    rows_of(a.deltas, tile, row);
    float y[R][8];
    auto linear = [&](u32 index, const X* x, u32 site, const float* bias) {
        HiddenPlanes hidden = {index};
        auto from = [&](u32 i) { return x + row[i] * a.stride + column; };
        site_output<R>(a.deltas, tile, site, hidden, bias, column, count, from, h_tile, y);
    };
    linear(0, a.gate, a.gate_site, a.gate_bias);
    Raw8<X> gates[R];
#pragma unroll
    for (u32 i = 0; i < R; i++) gates[i] = narrow8<X>(y[i]);
    linear(1, a.up, a.up_site, a.up_bias);
#pragma unroll
    for (u32 i = 0; i < R; i++) {
        if (i >= tile.rows) break;
        float gate[8];
        widen8(gates[i], gate);
#pragma unroll
        for (u32 j = 0; j < 8; j++)
            y[i][j] = rounded(y[i][j]) * (gate[j] / (1.0f + expf(-gate[j])));
        store8(a.out + (u64)row[i] * a.cols + column, count, y[i]);
    }
}

/// out = silu(gate) ⊙ up, after each linear's bias; for steps without adapters.
/// Grid: x = n, y = ceil(cols / (8 · block)). Block: 128, or fewer. Shared: none.
KERNEL(silu_mul, SiluMul, 128) { silu_rows<1>(args, bare_tile(blockIdx.x), nullptr); }

/// The same after each linear's bias and adapters.
/// Grid: x ≥ tiles, y as above. Block: 128, or fewer.
/// Shared: RANK_TILE · ROW_TILE · 4 = 1024 bytes.
KERNEL(silu_mul_tiles, SiluMul, 128) {
    float* h_tile = (float*)SHARED_MEMORY;
    RowTile tile = tile_at(args.deltas, blockIdx.x);
    if (tile.rows == 1)
        silu_rows<1>(args, tile, h_tile);
    else if (tile.rows > 1)
        silu_rows<ROW_TILE>(args, tile, h_tile);
}

struct Add {
    /// [n, cols], in place.
    X* x;
    /// [n, cols].
    const X* y;
    u32 cols;
    u32 reserved;
};

/// x += y. Grid: x = n, y = ceil(cols / (8 · block)). Block: 128, or fewer. Shared: none.
KERNEL(add, Add, 128) {
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    if (column >= args.cols) return;
    u32 count = smaller(LANE_COLUMNS, args.cols - column);
    u64 at = (u64)blockIdx.x * args.cols + column;
    float x[8], y[8];
    load8(args.x + at, count, x);
    load8(args.y + at, count, y);
#pragma unroll
    for (u32 i = 0; i < 8; i++) x[i] += y[i];
    store8(args.x + at, count, x);
}

EXPORT(silu_mul)
EXPORT(silu_mul_tiles)
EXPORT(add)
