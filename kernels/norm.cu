// RMS norm (Zhang and Sennrich, 2019), alone or after the residual's add.
#include "deltas.cuh"

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

template <u32 R>
DEVICE void add_rows(const AddRmsNorm& a, const RowTile& tile, float* h_tile, float* scratch) {
    u32 cols = a.norm.cols;
    u32 row[R];
    rows_of(a.deltas, tile, row);
    HiddenPlanes hidden = {a.linear};
    float squares[R] = {};
    u32 step = blockDim.x * LANE_COLUMNS;
    // All threads take every turn: the adapters' part has barriers.
    for (u32 first = 0; first < cols; first += step) {
        u32 column = first + threadIdx.x * LANE_COLUMNS;
        u32 count = column < cols ? smaller(LANE_COLUMNS, cols - column) : 0;
        auto from = [&](u32 i) { return a.y + (u64)row[i] * cols + column; };
        float y[R][8];
        site_output<R>(a.deltas, tile, a.site, hidden, a.bias, column, count, from, h_tile, y);
        Raw8<X> residual[R];
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            X* at = a.residual + (u64)row[i] * cols + column;
            residual[i] = load8_raw(at, i < tile.rows ? count : 0);
        }
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            if (i >= tile.rows) break;
            float sum[8];
            widen8(residual[i], sum);
#pragma unroll
            for (u32 j = 0; j < 8; j++) {
                sum[j] = rounded(sum[j] + rounded(y[i][j]));
                squares[i] += sum[j] * sum[j];
            }
            store8(a.residual + (u64)row[i] * cols + column, count, sum);
        }
    }
    if (!a.norm.out) return;
    // The same thread reads again what it stored.
#pragma unroll
    for (u32 i = 0; i < R; i++)
        if (i < tile.rows) norm_group(a.norm, a.residual, row[i], 0, squares[i], scratch);
}

/// residual += y after its bias; out = rms_norm(residual). For steps without adapters.
/// Grid: x = n. Block: whole warps, ceil(cols / 8) threads are enough, at most 512.
/// Shared: REDUCE_SCRATCH · 4 = 128 bytes.
KERNEL(add_rms_norm, AddRmsNorm, 512) {
    add_rows<1>(args, bare_tile(blockIdx.x), nullptr, (float*)SHARED_MEMORY);
}

/// The same after y's bias and adapters.
/// Grid: x ≥ tiles, y any: blocks share a tile's rows. Block: as above.
/// Shared: (RANK_TILE · ROW_TILE + REDUCE_SCRATCH) · 4 = 1152 bytes.
KERNEL(add_rms_norm_tiles, AddRmsNorm, 512) {
    float* h_tile = (float*)SHARED_MEMORY;
    float* scratch = h_tile + RANK_TILE * ROW_TILE;
    RowTile tile = tile_at(args.deltas, blockIdx.x);
    u32 share = ceil_div(tile.rows, gridDim.y), first = blockIdx.y * share;
    if (first >= tile.rows) return;
    tile.rows = smaller(share, tile.rows - first);
    tile.first += first;
    tile.entry += first;
    if (tile.rows == 1)
        add_rows<1>(args, tile, h_tile, scratch);
    else
        add_rows<ROW_TILE>(args, tile, h_tile, scratch);
}

EXPORT(rms_norm)
EXPORT(add_rms_norm)
EXPORT(add_rms_norm_tiles)
