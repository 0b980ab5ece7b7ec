// RMS norm (Zhang and Sennrich, 2019), alone or after the residual's add.
#include "common.cuh"

struct RmsNorm {
    /// [n, cols].
    const X* x;
    /// [n, cols]; may be x.
    X* out;
    /// [width].
    const float* weight;
    /// [width], added last but for adapters, or null.
    const float* shift;
    /// `h` and what describes it are not read: a norm has no low-rank part.
    Deltas deltas;
    u32 site;
    u32 cols;
    /// Divides cols: each group of it is normed alone.
    u32 width;
    float eps;
};

/// Norms `width` numbers from `first` of a row of x as it stands in memory.
DEVICE void norm_group(const RmsNorm& a, const X* x, u32 row, u32 first, float squares,
                       float* scratch) {
    squares = block_reduce(squares, scratch, Sum());
    float factor = 1.0f / sqrtf(squares / (float)a.width + a.eps);
    u32 step = blockDim.x * LANE_COLUMNS;
    for (u32 column = threadIdx.x * LANE_COLUMNS; column < a.width; column += step) {
        u32 count = smaller(LANE_COLUMNS, a.width - column);
        u64 at = (u64)row * a.cols + first + column;
        float v[8];
        load8(x + at, count, v);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (i >= count) continue;
            float shift = a.shift ? a.shift[column + i] : 0.0f, weight = a.weight[column + i];
            v[i] = norm_column(a.deltas, row, a.site, v[i] * factor, weight, shift, column + i);
        }
        store8(a.out + at, count, v);
    }
}

/// out = x / sqrt(mean(x²) + eps) ⊙ weight + shift, then each row's adapters.
/// Grid: x = n, y = cols / width. Block: whole warps, ceil(width / 8) threads are enough, at most
/// 512. Shared: REDUCE_SCRATCH · 4 = 128 bytes.
KERNEL(rms_norm, RmsNorm, 512) {
    float* scratch = (float*)SHARED_MEMORY;
    u32 row = blockIdx.x, first = blockIdx.y * args.width;
    float squares = 0.0f;
    u32 step = blockDim.x * LANE_COLUMNS;
    for (u32 column = threadIdx.x * LANE_COLUMNS; column < args.width; column += step) {
        float v[8];
        u32 count = smaller(LANE_COLUMNS, args.width - column);
        load8(args.x + (u64)row * args.cols + first + column, count, v);
#pragma unroll
        for (u32 i = 0; i < 8; i++) squares += v[i] * v[i];
    }
    norm_group(args, args.x, row, first, squares, scratch);
}

struct AddRmsNorm {
    /// [n, cols], in place: the residual stream.
    X* residual;
    /// [n, cols]: a linear's output before bias and adapters.
    const X* y;
    /// [cols], or null: of that linear.
    const float* bias;
    /// Of that linear, with its h.
    Deltas deltas;
    u32 site;
    u32 linear;
    /// `x` is not read; `out` null: only the sum is wanted. `width` = `cols`.
    RmsNorm norm;
};

/// residual += y after bias and adapters; out = rms_norm(residual).
/// Grid: x = n. Block: whole warps, ceil(cols / 8) threads are enough, at most 512.
/// Shared: (RANK_TILE + REDUCE_SCRATCH) · 4 = 384 bytes.
KERNEL(add_rms_norm, AddRmsNorm, 512) {
    float* h_tile = (float*)SHARED_MEMORY;
    float* scratch = h_tile + RANK_TILE;
    u32 row = blockIdx.x, cols = args.norm.cols;
    HiddenPlanes hidden = {args.linear};
    float squares = 0.0f;
    u32 step = blockDim.x * LANE_COLUMNS;
    // All threads take every turn: the adapters' part has barriers.
    for (u32 first = 0; first < cols; first += step) {
        u32 column = first + threadIdx.x * LANE_COLUMNS;
        u32 count = column < cols ? smaller(LANE_COLUMNS, cols - column) : 0;
        u64 at = (u64)row * cols + column;
        float y[8], sum[8];
        load8(args.y + at, count, y);
        if (args.bias)
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (i < count) y[i] += args.bias[column + i];
        apply_deltas(args.deltas, row, args.site, hidden, column, count, y, h_tile);
        load8(args.residual + at, count, sum);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            sum[i] = rounded(sum[i] + rounded(y[i]));
            squares += sum[i] * sum[i];
        }
        store8(args.residual + at, count, sum);
    }
    // The same thread reads again what it stored.
    if (args.norm.out) norm_group(args.norm, args.residual, row, 0, squares, scratch);
}

EXPORT(rms_norm)
EXPORT(add_rms_norm)
