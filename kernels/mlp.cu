// Elementwise kernels between linears.
#include "common.cuh"

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

/// A linear's columns as they would be stored, adapters applied.
DEVICE void linear_columns(const X* y, const float* bias, const Deltas& d, u32 row, u32 site,
                           u32 linear, u64 stride, u32 column, u32 count, float (&v)[8],
                           float* h_tile) {
    load8(y + row * stride + column, count, v);
    if (bias)
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (i < count) v[i] += bias[column + i];
    HiddenPlanes hidden = {linear};
    apply_deltas(d, row, site, hidden, column, count, v, h_tile);
}

/// out = silu(gate) ⊙ up, after each linear's bias and adapters.
/// Grid: x = n, y = ceil(cols / (8 · block)). Block: 128, or fewer.
/// Shared: RANK_TILE · 4 = 256 bytes.
KERNEL(silu_mul, SiluMul, 128) {
    float* h_tile = (float*)SHARED_MEMORY;
    u32 row = blockIdx.x;
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * LANE_COLUMNS;
    u32 count = column < args.cols ? smaller(LANE_COLUMNS, args.cols - column) : 0;
    float gate[8], up[8];
    const Deltas& d = args.deltas;
    linear_columns(args.gate, args.gate_bias, d, row, args.gate_site, 0, args.stride, column, count,
                   gate, h_tile);
    linear_columns(args.up, args.up_bias, d, row, args.up_site, 1, args.stride, column, count, up,
                   h_tile);
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        float g = rounded(gate[i]);
        up[i] = rounded(up[i]) * (g / (1.0f + expf(-g)));
    }
    store8(args.out + (u64)row * args.cols + column, count, up);
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
EXPORT(add)
