// Causal attention over paged keys and values, prompts and single tokens in one ragged batch.
//
// The query heads of one key/value head and the rows of one sequence are packed together: packed
// query i of a tile is row i / group, head i % group of the key/value head's group. So one load of
// a key serves all that share it, and single tokens fill tensor cores too.
//
// The context may be cut into splits, by absolute position. Their length is the tile's: the host
// takes it from the last position of the tile's own sequence, so how a row is cut does not depend
// on who else is in the step. attention_combine sums the splits in their order.
#include "common.cuh"

/// Packed queries first … first + (16 or 64) of `rows` consecutive rows of one sequence.
struct Tile {
    u32 row;
    u32 rows;
    u32 first;
    /// Packed queries of the tiles before it.
    u32 before;
    /// Positions of one split: a multiple of 64.
    u32 split_tokens;
};

struct Attention {
    /// Row i starts at q + i · q_stride: [heads · head_dim].
    const X* q;
    u64 q_stride;
    /// [n, heads · head_dim].
    X* out;
    /// [blocks, kv_heads, block_tokens, head_dim] of one layer.
    const KV* keys;
    const KV* values;
    /// [n].
    const u32* positions;
    /// [n]: where the row's sequence starts in block_tables.
    const u32* row_table;
    const u32* block_tables;
    /// [tile_count].
    const Tile* tiles;
    const u32* tile_count;
    /// [packed queries of all tiles, kv_heads, splits_max, head_dim]; neither is touched for rows
    /// of one split.
    float* partial;
    /// [packed queries, kv_heads, splits_max, 2]: the highest score (base 2) and the sum of weights
    /// below it.
    float* partial_sums;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 block_tokens;
    /// Positions that a query sees, its own included; 0: all.
    u32 window;
    /// Room for splits of one query.
    u32 splits_max;
    /// Multiplies q · k.
    float scale;
    u32 reserved;
};

const u32 WARPS = 4;
const float LOG2_E = 1.4426950408889634f;

/// Positions that a query at `position` sees: first … position.
DEVICE u32 first_seen(const Attention& a, u32 position) {
    return a.window && position >= a.window ? position + 1 - a.window : 0;
}

struct Query {
    /// Among all packed queries and key/value heads.
    u64 place;
    u32 row;
    u32 head;
    /// Positions that it sees, and the splits that hold them.
    u32 first;
    u32 position;
    u32 first_split;
    u32 last_split;
};

DEVICE Query query_at(const Attention& a, const Tile& tile, u32 packed, u32 kv_head) {
    u32 group = a.heads / a.kv_heads;
    Query query;
    query.place = (u64)(tile.before + packed - tile.first) * a.kv_heads + kv_head;
    query.row = tile.row + packed / group;
    query.head = kv_head * group + packed % group;
    query.position = a.positions[query.row];
    query.first = first_seen(a, query.position);
    query.first_split = query.first / tile.split_tokens;
    query.last_split = query.position / tile.split_tokens;
    return query;
}

/// Where the head's key or value of a position starts, in elements.
DEVICE u64 cell_at(const Attention& a, const u32* table, u32 kv_head, u32 position) {
    u64 page = table[position / a.block_tokens];
    u64 cell = (page * a.kv_heads + kv_head) * a.block_tokens + position % a.block_tokens;
    return cell * a.head_dim;
}

/// One element of a query's result over one split; `sum` is that of the weights.
DEVICE void write_result(const Attention& a, const Query& query, u32 split, u32 d, float value,
                         float highest, float sum) {
    u64 at = (u64)query.row * a.heads + query.head;
    if (query.first_split == query.last_split) {
        a.out[at * a.head_dim + d] = narrow<X>(value / sum);
        return;
    }
    at = query.place * a.splits_max + (split - query.first_split);
    a.partial[at * a.head_dim + d] = value;
    if (d == 0) {
        a.partial_sums[at * 2] = highest;
        a.partial_sums[at * 2 + 1] = sum;
    }
}

DEVICE bool in_split(const Query& query, u32 split) {
    return query.first_split <= split && split <= query.last_split;
}

/// Sizes of the tensor-core kernel for heads of up to D, and 16 · M_WARPS packed queries. Warps
/// that do not differ in queries differ in keys.
template <u32 D, u32 M_WARPS>
struct Shape {
    static const u32 N_WARPS = WARPS / M_WARPS;
    static const u32 QUERIES = 16 * M_WARPS;
    static const u32 TOKENS = 64;
    static const u32 STAGES = D > 128 ? 1 : 2;
    /// Tiles of 8 tokens of one warp.
    static const u32 S_TILES = TOKENS / N_WARPS / 8;
    /// Padded, so that 8 rows of a tile lie in different banks.
    static const u32 STRIDE = D + 8;
    static const u32 TILE = TOKENS * STRIDE;
};

/// Starts the copy of a tile of keys or values; positions outside of begin … end and columns
/// beyond the head are zeros.
template <u32 D, u32 M_WARPS>
DEVICE void copy_tile(const Attention& a, const u32* table, u32 kv_head, u32 start, u32 begin,
                      u32 end, const KV* from, KV* to) {
    typedef Shape<D, M_WARPS> S;
    for (u32 i = threadIdx.x; i < S::TOKENS * (D / 8); i += blockDim.x) {
        u32 token = i / (D / 8), column = i % (D / 8) * 8;
        u32 position = start + token;
        bool valid = position >= begin && position < end && column < a.head_dim;
        u64 at = valid ? cell_at(a, table, kv_head, position) + column : 0;
        copy_async16(to + token * S::STRIDE + column, from + at, valid);
    }
}

template <u32 D, u32 M_WARPS>
struct Running {
    float o[D / 8][4];
    /// Of rows g and g + 8.
    float highest[2];
    float sum[2];
};

/// Two floats as one register of an mma.
template <class T>
DEVICE u32 pack(float low, float high) {
    return narrow<T>(low).bits | (u32)narrow<T>(high).bits << 16;
}

/// One tile of keys and values onto one warp's 16 queries.
template <u32 D, u32 M_WARPS>
DEVICE void attend_tile(const Attention& a, Running<D, M_WARPS>& run, const KV* queries,
                        const KV* keys, const KV* values, u32 first_position, u32 begin, u32 end,
                        const u32 (&seen_first)[2], const u32 (&seen_last)[2]) {
    typedef Shape<D, M_WARPS> S;
    u32 t = lane_id() % 4, in_tile = lane_id() % 8, of_tile = lane_id() / 8;
    queries += (of_tile % 2 * 8 + in_tile) * S::STRIDE + of_tile / 2 * 8;
    float s[S::S_TILES][4] = {};
#pragma unroll
    for (u32 k = 0; k < D; k += 16) {
        u32 q[4];
        load_tiles<false>(q, queries + k);
#pragma unroll
        for (u32 n = 0; n < S::S_TILES; n += 2) {
            u32 b[4];
            u32 token = n * 8 + of_tile / 2 * 8 + in_tile;
            load_tiles<false>(b, keys + token * S::STRIDE + k + of_tile % 2 * 8);
            const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma<KV>(s[n], q, b0);
            mma<KV>(s[n + 1], q, b1);
        }
    }
    float highest[2] = {run.highest[0], run.highest[1]};
#pragma unroll
    for (u32 n = 0; n < S::S_TILES; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 position = first_position + n * 8 + t * 2 + i % 2;
            bool seen = position >= seen_first[i / 2] && position <= seen_last[i / 2] &&
                        position >= begin && position < end;
            s[n][i] = seen ? s[n][i] * (a.scale * LOG2_E) : -infinite();
            highest[i / 2] = fmaxf(highest[i / 2], s[n][i]);
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float all = highest[half];
        all = fmaxf(all, __shfl_xor_sync(ALL_LANES, all, 1));
        all = fmaxf(all, __shfl_xor_sync(ALL_LANES, all, 2));
        // Nothing seen so far: any finite number keeps the weights at 0.
        float base = all == -infinite() ? 0.0f : all;
        float shrink = exp2f(run.highest[half] - base);
        run.highest[half] = all;
        highest[half] = base;
        run.sum[half] *= shrink;
#pragma unroll
        for (u32 d = 0; d < D / 8; d++) {
            run.o[d][half * 2] *= shrink;
            run.o[d][half * 2 + 1] *= shrink;
        }
    }
#pragma unroll
    for (u32 n = 0; n < S::S_TILES; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            s[n][i] = exp2f(s[n][i] - highest[i / 2]);
            run.sum[i / 2] += s[n][i];
        }
    }
#pragma unroll
    for (u32 n = 0; n < S::S_TILES; n += 2) {
        const u32 p[4] = {pack<KV>(s[n][0], s[n][1]), pack<KV>(s[n][2], s[n][3]),
                          pack<KV>(s[n + 1][0], s[n + 1][1]), pack<KV>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
        for (u32 d = 0; d < D / 8; d += 2) {
            u32 b[4];
            u32 token = n * 8 + of_tile % 2 * 8 + in_tile;
            load_tiles<true>(b, values + token * S::STRIDE + d * 8 + of_tile / 2 * 8);
            const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma<KV>(run.o[d], p, b0);
            mma<KV>(run.o[d + 1], p, b1);
        }
    }
}

/// Merges the warps that share queries, in their order, and writes.
template <u32 D, u32 M_WARPS>
DEVICE void finish_split(const Attention& a, const Tile& tile, u32 kv_head, u32 split, u32 packed,
                         Running<D, M_WARPS>& run, float* merge) {
    typedef Shape<D, M_WARPS> S;
    u32 g = lane_id() / 4, t = lane_id() % 4;
    // [WARPS, 16, 2], then [WARPS, 16, D]: fits in one stage. The last keys were here.
    float* sums = merge;
    float* outs = merge + WARPS * 16 * 2;
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float sum = run.sum[half];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        u32 at = warp_id() * 16 + g + half * 8;
        if (t == 0) {
            sums[at * 2] = run.highest[half];
            sums[at * 2 + 1] = sum;
        }
#pragma unroll
        for (u32 d = 0; d < D / 8; d++) {
            outs[at * D + d * 8 + t * 2] = run.o[d][half * 2];
            outs[at * D + d * 8 + t * 2 + 1] = run.o[d][half * 2 + 1];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < packed * a.head_dim; i += blockDim.x) {
        u32 q = i / a.head_dim, d = i % a.head_dim;
        Query query = query_at(a, tile, tile.first + q, kv_head);
        if (!in_split(query, split)) continue;
        u32 first_warp = q / 16 * S::N_WARPS;
        float highest = -infinite(), sum = 0.0f, value = 0.0f;
        for (u32 w = first_warp; w < first_warp + S::N_WARPS; w++)
            highest = fmaxf(highest, sums[(w * 16 + q % 16) * 2]);
        for (u32 w = first_warp; w < first_warp + S::N_WARPS; w++) {
            u32 at = w * 16 + q % 16;
            float share = exp2f(sums[at * 2] - highest);
            sum += share * sums[at * 2 + 1];
            value += share * outs[at * D + d];
        }
        write_result(a, query, split, d, value, highest, sum);
    }
    // The next split writes shared memory again.
    __syncthreads();
}

/// One split of one tile of queries.
template <u32 D, u32 M_WARPS>
DEVICE void attend_split(const Attention& a, const Tile& tile, u32 kv_head, u32 split, u32 begin,
                         u32 end, u32 packed, KV* queries, KV* pages) {
    typedef Shape<D, M_WARPS> S;
    u32 warp_m = warp_id() / S::N_WARPS, warp_n = warp_id() % S::N_WARPS;
    const u32* table = a.block_tables + a.row_table[tile.row];
    Running<D, M_WARPS> run = {};
    // A query beyond the tile's last sees nothing.
    u32 seen_first[2], seen_last[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 q = warp_m * 16 + half * 8 + lane_id() / 4;
        run.highest[half] = -infinite();
        seen_first[half] = 1;
        seen_last[half] = 0;
        if (q < packed) {
            Query query = query_at(a, tile, tile.first + q, kv_head);
            seen_first[half] = query.first;
            seen_last[half] = query.position;
        }
    }
    u32 start = begin / S::TOKENS * S::TOKENS;
    u32 turns = ceil_div(end - start, S::TOKENS);
    auto copy = [&](u32 turn) {
        KV* to = pages + turn % S::STAGES * 2 * S::TILE;
        u32 from = start + turn * S::TOKENS;
        if (turn < turns) {
            copy_tile<D, M_WARPS>(a, table, kv_head, from, begin, end, a.keys, to);
            copy_tile<D, M_WARPS>(a, table, kv_head, from, begin, end, a.values, to + S::TILE);
        }
        // One group a turn, empty ones too: then the wait below counts right.
        copy_commit();
    };
    for (u32 turn = 0; turn + 1 < S::STAGES; turn++) copy(turn);
    for (u32 turn = 0; turn < turns; turn++) {
        copy(turn + S::STAGES - 1);
        copy_wait<S::STAGES - 1>();
        __syncthreads();
        const KV* keys = pages + turn % S::STAGES * 2 * S::TILE;
        u32 mine = warp_n * (S::TOKENS / S::N_WARPS);
        attend_tile<D, M_WARPS>(a, run, queries + warp_m * 16 * S::STRIDE, keys + mine * S::STRIDE,
                                keys + S::TILE + mine * S::STRIDE,
                                start + turn * S::TOKENS + mine, begin, end, seen_first, seen_last);
        // A later turn's copy lands in this one's place.
        __syncthreads();
    }
    copy_wait<0>();
    finish_split<D, M_WARPS>(a, tile, kv_head, split, packed, run, (float*)pages);
}

template <u32 D, u32 M_WARPS>
DEVICE void attend(const Attention& a) {
    typedef Shape<D, M_WARPS> S;
    KV* queries = (KV*)SHARED_MEMORY;
    KV* pages = queries + S::QUERIES * S::STRIDE;
    u32 kv_head = blockIdx.y, group = a.heads / a.kv_heads, tiles = *a.tile_count;
    for (u32 i = blockIdx.z; i < tiles; i += gridDim.z) {
        Tile tile = a.tiles[i];
        u32 packed = smaller(S::QUERIES, tile.rows * group - tile.first);
        Query first = query_at(a, tile, tile.first, kv_head);
        Query last = query_at(a, tile, tile.first + packed - 1, kv_head);
        u32 split = first.first_split + blockIdx.x;
        if (split > last.last_split) continue;
        __syncthreads();
        for (u32 j = threadIdx.x; j < S::QUERIES * D; j += blockDim.x) {
            u32 q = j / D, d = j % D;
            float x = 0.0f;
            if (q < packed && d < a.head_dim) {
                Query query = query_at(a, tile, tile.first + q, kv_head);
                x = widen(a.q[query.row * a.q_stride + (u64)query.head * a.head_dim + d]);
            }
            queries[q * S::STRIDE + d] = narrow<KV>(x);
        }
        for (; split <= last.last_split; split += gridDim.x) {
            u32 start = split * tile.split_tokens, begin = start, end = last.position + 1;
            if (first.first > begin) begin = first.first;
            if (end - start > tile.split_tokens) end = start + tile.split_tokens;
            attend_split<D, M_WARPS>(a, tile, kv_head, split, begin, end, packed, queries, pages);
        }
    }
}

/// Tensor-core attention, for 16-bit KV, head_dim ≤ D a multiple of 8, and pages at addresses
/// divisible by 16. attention_decode_D: tiles of 16 packed queries, the four warps share the keys.
/// attention_prefill_D: tiles of 64, each warp has its own 16; a split is longer than any context.
/// Grid: x any ≤ splits, y = kv_heads, z any ≤ tiles (blocks take splits and tiles in turn).
/// Block: 128. Shared: (queries + 2 · stages · 64) · (D + 8) · 2, with one stage for D = 256 and
/// else two, in bytes:
///   decode   64: 39168    128: 73984    256: 76032
///   prefill  64: 46080    128: 87040    256: 101376
#define ATTENTION(name, D, M_WARPS)           \
    KERNEL(name, Attention, 128) {            \
        if constexpr (sizeof(KV) == 2)        \
            attend<D, M_WARPS>(args);         \
        else                                  \
            __trap();                         \
    }                                         \
    EXPORT(name)
ATTENTION(attention_decode_64, 64, 1)
ATTENTION(attention_decode_128, 128, 1)
ATTENTION(attention_decode_256, 256, 1)
ATTENTION(attention_prefill_64, 64, 4)
ATTENTION(attention_prefill_128, 128, 4)
ATTENTION(attention_prefill_256, 256, 4)

/// Any width of KV and any head_dim, without tensor cores; tiles of 16 packed queries.
/// Grid: as above. Block: 128. Shared: (2 · head_dim + 128 + REDUCE_SCRATCH) · 4 bytes.
KERNEL(attention_any, Attention, 128) {
    float* q = (float*)SHARED_MEMORY;
    float* out = q + args.head_dim;
    float* scores = out + args.head_dim;
    float* scratch = scores + blockDim.x;
    u32 kv_head = blockIdx.y, group = args.heads / args.kv_heads, tiles = *args.tile_count;
    for (u32 i = blockIdx.z; i < tiles; i += gridDim.z) {
        Tile tile = args.tiles[i];
        const u32* table = args.block_tables + args.row_table[tile.row];
        u32 packed = smaller(16, tile.rows * group - tile.first);
        for (u32 p = 0; p < packed; p++) {
            Query query = query_at(args, tile, tile.first + p, kv_head);
            u32 split = query.first_split + blockIdx.x;
            for (; in_split(query, split); split += gridDim.x) {
                __syncthreads();
                const X* from = args.q + query.row * args.q_stride;
                for (u32 d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
                    q[d] = widen(from[(u64)query.head * args.head_dim + d]);
                    out[d] = 0.0f;
                }
                u32 start = split * tile.split_tokens, end = query.position + 1;
                if (end - start > tile.split_tokens) end = start + tile.split_tokens;
                if (start < query.first) start = query.first;
                float highest = -infinite(), sum = 0.0f;
                for (; start < end; start += blockDim.x) {
                    u32 tokens = smaller(blockDim.x, end - start);
                    __syncthreads();
                    for (u32 j = warp_id(); j < tokens; j += blockDim.x / WARP) {
                        const KV* key = args.keys + cell_at(args, table, kv_head, start + j);
                        float dot = 0.0f;
                        for (u32 d = lane_id(); d < args.head_dim; d += WARP)
                            dot += q[d] * widen(key[d]);
                        dot = warp_reduce(dot, Sum());
                        if (lane_id() == 0) scores[j] = dot * (args.scale * LOG2_E);
                    }
                    __syncthreads();
                    float mine = threadIdx.x < tokens ? scores[threadIdx.x] : -infinite();
                    float base = fmaxf(highest, block_reduce(mine, scratch, Max()));
                    float weight = exp2f(mine - base), shrink = exp2f(highest - base);
                    scores[threadIdx.x] = weight;
                    // Its barriers also make the weights visible.
                    sum = sum * shrink + block_reduce(weight, scratch, Sum());
                    highest = base;
                    for (u32 d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
                        float value = out[d] * shrink;
                        for (u32 j = 0; j < tokens; j++) {
                            u64 at = cell_at(args, table, kv_head, start + j);
                            value += scores[j] * widen(args.values[at + d]);
                        }
                        out[d] = value;
                    }
                }
                for (u32 d = threadIdx.x; d < args.head_dim; d += blockDim.x)
                    write_result(args, query, split, d, out[d], highest, sum);
            }
        }
    }
}

/// Sums the splits of one packed query, where it has several, in their order.
DEVICE void combine(const Attention& args, const Query& query) {
    u32 splits = query.last_split - query.first_split + 1;
    if (splits == 1) return;
    u64 at = (u64)query.row * args.heads + query.head;
    const float* sums = args.partial_sums + query.place * args.splits_max * 2;
    const float* parts = args.partial + query.place * args.splits_max * args.head_dim;
    float highest = -infinite();
    for (u32 s = 0; s < splits; s++) highest = fmaxf(highest, sums[s * 2]);
    for (u32 d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
        float value = 0.0f, sum = 0.0f;
        for (u32 s = 0; s < splits; s++) {
            float share = exp2f(sums[s * 2] - highest);
            value += share * parts[(u64)s * args.head_dim + d];
            sum += share * sums[s * 2 + 1];
        }
        args.out[at * args.head_dim + d] = narrow<X>(value / sum);
    }
}

/// Sums the splits of every query of the tiles.
/// Grid: x = 16, y = kv_heads, z any ≤ tiles. Block: 128, or fewer. Shared: none.
KERNEL(attention_combine, Attention, 128) {
    u32 group = args.heads / args.kv_heads, tiles = *args.tile_count;
    for (u32 i = blockIdx.z; i < tiles; i += gridDim.z) {
        Tile tile = args.tiles[i];
        if (blockIdx.x < smaller(gridDim.x, tile.rows * group - tile.first))
            combine(args, query_at(args, tile, tile.first + blockIdx.x, blockIdx.y));
    }
}

EXPORT(attention_any)
EXPORT(attention_combine)
