// Draws one token from each row of logits, and says how likely it and others were.
//
// The rules are those of the CPU sampler (backend/cpu/sample.rs), and so is the random number: the
// same logits, seed and step give the same token. Sums are kept in integers or in f64, so that the
// order of threads does not matter.
#include "common.cuh"

struct SampleParams {
    /// Divides the logits; 0 takes the likeliest.
    float temperature;
    /// Keeps the likeliest tokens that reach this share; 1 keeps all.
    float top_p;
    /// Drops tokens less likely than this share of the likeliest; 0 drops none.
    float min_p;
    /// Keeps this many of the likeliest; 0 keeps all.
    u32 top_k;
    u64 seed;
    u64 step;
    /// Alternatives to report: at most top_max.
    u32 top;
    /// Not 0: report the rank too.
    u32 ranked;
    /// A token that is given and only scored; 0xffffffff: one is drawn.
    u32 target;
    /// Row of masks; 0xffffffff: all tokens may be drawn.
    u32 mask;
    /// Row of masks with the tokens whose logits the penalty changes and no edit names;
    /// 0xffffffff: none.
    u32 seen;
    /// Divides their positive logits and multiplies the others.
    float repetition_penalty;
    /// The row's stretch of edits.
    u32 edits_first;
    u32 edits;
};

/// Of one token's logit; a row names a token once.
struct LogitEdit {
    u32 token;
    /// Added first; −∞ forbids the token. Holds the logit as it was while the edited one is drawn
    /// from.
    float add;
    /// Then divides what is positive and multiplies the rest: 1 where the penalty does not apply.
    float repeat;
    /// Then taken off.
    float take;
};

struct Sample {
    /// [m, vocabulary]; what is not finite has no share. As they were when the kernel has run.
    float* logits;
    /// [m].
    const SampleParams* params;
    /// [m]; 0xffffffff where no logit is finite.
    u32* tokens;
    /// [m]: natural logarithm of the token's probability before edits, penalty, temperature and
    /// filters.
    float* logprobs;
    /// [m]: 1 and the number of likelier tokens; 0 where it is not asked for.
    u32* ranks;
    /// [any, ceil(vocabulary / 32)]: bit t % 32 of word t / 32 says whether token t is one of them.
    const u32* masks;
    /// Of all rows, one after another; some of this kernel's working memory.
    LogitEdit* edits;
    /// [m, top_max], likeliest first; 0xffffffff and −∞ where there are fewer.
    u32* top_tokens;
    float* top_logprobs;
    /// At most 2^18: the sums of weights stay below 2^63.
    u32 vocabulary;
    u32 top_max;
};

const u32 NONE = 0xffffffff;
const u32 BINS = 2048;
/// Octaves of weight that the first histogram spreads over its bins; all below share the last bin.
const float BIN_OCTAVES = 16.0f;
/// A weight of 1 in a sum of integers.
const double UNIT = 35184372088832.0;  // 2^45

/// e^x, with the CPU's polynomial and its order of operations: bit for bit the same.
DEVICE float exp_same(float x) {
    const float round = 12582912.0f + 127.0f;
    x = x < -88.0f ? -88.0f : x > 89.0f ? 89.0f : x;
    float shifted = fmaf(x, 1.44269504088896340736f, round);
    float n = shifted - round;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 0.16666665f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r * r, r) + 1.0f;
    return p * float_of(bits_of(shifted) << 23);
}

DEVICE u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/// In [0, 1), from the seed and the step alone (SplitMix64's mixer, Steele et al. 2014, twice).
DEVICE double uniform(u64 seed, u64 step) {
    const u64 golden = 0x9e3779b97f4a7c15ull;
    u64 bits = mix(mix(seed + golden) + (step + 1) * golden);
    return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

/// One row, as all threads of its block see it.
struct Row {
    const float* logits;
    u32 vocabulary;
    float best;
    float temperature;
    /// Tokens that have a share, or null: all.
    const u32* mask;
    /// Tokens that are penalised, or null: none.
    const u32* seen;
    float penalty;

    DEVICE static float repeated(float x, float penalty) {
        return x > 0.0f ? x / penalty : product(x, penalty);
    }

    DEVICE static bool has(const u32* tokens, u32 id) {
        return tokens[id / 32] >> (id % 32) & 1;
    }

    /// Adding 0 makes −0 equal to 0 in every order.
    DEVICE float logit(u32 id) const {
        float x = logits[id];
        if (mask && !has(mask, id)) return -infinite();
        if (seen && has(seen, id)) x = repeated(x, penalty);
        return x - x == 0.0f ? x + 0.0f : -infinite();
    }
    /// Larger for likelier; −0 does not occur.
    DEVICE u32 key(float logit) const {
        u32 bits = bits_of(logit);
        return bits >> 31 ? ~bits : bits | 0x80000000u;
    }
    /// The likeliest token has 1.
    DEVICE float weight(float logit) const {
        float below = logit - best;
        return exp_same(temperature == 1.0f ? below : below / temperature);
    }
    DEVICE u64 mass(float logit) const { return (u64)((double)weight(logit) * UNIT + 0.5); }
    /// Falls with the logit, never rises.
    DEVICE u32 bin(float logit) const {
        float place = (best - logit) * ((float)BINS / (BIN_OCTAVES * 0.6931472f * temperature));
        return place < (float)(BINS - 1) ? (u32)place : BINS - 1;
    }
};

struct Shared {
    u64 mass[BINS];
    u32 count[BINS];
    u64 scratch[REDUCE_SCRATCH];
    u64 found[3];
};

/// Of the threads' values in order: the sum of those before this one's. A warp at a time.
template <class V>
DEVICE V warp_before(V v) {
    V sum = v;
    for (u32 by = 1; by < WARP; by *= 2) {
        V other = __shfl_up_sync(ALL_LANES, sum, by);
        if (lane_id() >= by) sum += other;
    }
    return sum - v;
}

/// The first id at which the running sum of `of(id)` passes `target`; else the last id of which it
/// is above 0. Every thread gets it.
template <class V, class Of>
DEVICE u32 find_by_id(const Row& row, Shared& shared, V target, Of of) {
    V* sums = (V*)shared.scratch;
    u32 warps = blockDim.x / WARP;
    u32 stretch = ceil_div(row.vocabulary, warps * WARP) * WARP;
    u32 begin = smaller(warp_id() * stretch, row.vocabulary);
    u32 end = smaller(begin + stretch, row.vocabulary);
    // A sum in the order of ids would need one thread; the same fixed grouping is used below.
    V sum = 0;
    for (u32 first = begin; first < end; first += WARP) {
        u32 id = first + lane_id();
        sum += warp_reduce(id < end ? of(id) : (V)0, Sum());
    }
    __syncthreads();
    if (lane_id() == 0) sums[warp_id()] = sum;
    if (threadIdx.x == 0) shared.found[0] = NONE;
    __syncthreads();
    V before = 0;
    u32 owner = 0;
    bool passed = false;
    for (u32 w = 0; w < warps && !passed; w++) {
        if (sums[w] > 0) owner = w;
        passed = before + sums[w] > target;
        if (!passed) before += sums[w];
    }
    if (!passed) before -= sums[owner];
    if (warp_id() == owner) {
        u32 last = NONE;
        for (u32 first = begin; first < end; first += WARP) {
            u32 id = first + lane_id();
            V mine = id < end ? of(id) : (V)0;
            V reached = before + warp_before(mine) + mine;
            u32 hit = mine > 0 && reached > target ? id : NONE;
            hit = ~warp_reduce(~hit, Max());
            // Ids ascend, so the larger is the later; NONE + 1 is 0.
            u32 later = warp_reduce(mine > 0 ? id + 1 : 0, Max());
            if (later) last = later - 1;
            if (hit != NONE) {
                last = hit;
                break;
            }
            before += warp_reduce(mine, Sum());
        }
        if (lane_id() == 0) shared.found[0] = last;
    }
    __syncthreads();
    u32 found = (u32)shared.found[0];
    __syncthreads();
    return found;
}

/// A cut in the order of likelihood: between equals the lower id is likelier.
struct Cut {
    u32 key;
    u32 id;
    /// Of this token and all likelier ones.
    u64 mass;
};

DEVICE bool up_to(const Cut& cut, u32 key, u32 id) {
    return key > cut.key || (key == cut.key && id <= cut.id);
}

/// The bin at which the running sum, of masses or of counts, passes `target`; `count` and `mass`
/// become the sums before it. One warp scans.
DEVICE u32 find_bin(Shared& shared, bool by_mass, u64 target, u64& count, u64& mass) {
    __syncthreads();
    if (warp_id() == 0) {
        u32 bin = NONE;
        for (u32 first = 0; first < BINS && bin == NONE; first += WARP) {
            u64 c = shared.count[first + lane_id()], m = shared.mass[first + lane_id()];
            u64 counts = count + warp_before(c), masses = mass + warp_before(m);
            bool passes = by_mass ? masses + m > target : counts + c > target;
            u32 hit = ~warp_reduce(~(passes ? first + lane_id() : NONE), Max());
            if (hit != NONE) {
                bin = hit;
                count = __shfl_sync(ALL_LANES, counts, hit % WARP);
                mass = __shfl_sync(ALL_LANES, masses, hit % WARP);
            } else {
                count += warp_reduce(c, Sum());
                mass += warp_reduce(m, Sum());
            }
        }
        if (lane_id() == 0) {
            shared.found[0] = bin;
            shared.found[1] = count;
            shared.found[2] = mass;
        }
    }
    __syncthreads();
    count = shared.found[1];
    mass = shared.found[2];
    return (u32)shared.found[0];
}

/// The likeliest token at which the running sum of `included` tokens, likeliest first, passes
/// `target`: of their masses or of their number. The sum of all must pass it.
///
/// First by bins of weight, which spread a vocabulary well and leave its tail to registers; then
/// the tokens of one bin by three digits of their key; then equals by id.
template <class Included>
DEVICE Cut find_ranked(const Row& row, Shared& shared, bool by_mass, u64 target,
                       Included included) {
    u32 the_bin = NONE, prefix = 0, done = 0;
    u64 count = 0, mass = 0;
    for (u32 level = 0; level < 4; level++) {
        u32 digits = level == 0 ? 0 : level == 3 ? 10 : 11;
        u32 below = 32 - done - digits;
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
            shared.mass[i] = 0;
            shared.count[i] = 0;
        }
        __syncthreads();
        u64 tail_mass = 0;
        u32 tail_count = 0;
        for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x) {
            float logit = row.logit(id);
            u32 key = row.key(logit), bin = row.bin(logit);
            if (!included(logit, key, id)) continue;
            if (level == 0 && bin == BINS - 1) {
                tail_mass += row.mass(logit);
                tail_count++;
                continue;
            }
            if (level > 0) {
                if (bin != the_bin || (done > 0 && key >> (32 - done) != prefix)) continue;
                // Larger keys first.
                bin = (1u << digits) - 1 - ((key >> below) & ((1u << digits) - 1));
            }
            atomicAdd(&shared.mass[bin], row.mass(logit));
            atomicAdd(&shared.count[bin], 1u);
        }
        if (level == 0) {
            tail_mass = block_reduce(tail_mass, shared.scratch, Sum());
            tail_count = block_reduce(tail_count, (u32*)shared.scratch, Sum());
            if (threadIdx.x == 0) {
                shared.mass[BINS - 1] = tail_mass;
                shared.count[BINS - 1] = tail_count;
            }
        }
        u32 bin = find_bin(shared, by_mass, target, count, mass);
        if (level == 0) {
            the_bin = bin;
            continue;
        }
        prefix = prefix << digits | ((1u << digits) - 1 - bin);
        done += digits;
    }
    u64 rest = target - (by_mass ? mass : count);
    u32 bits = prefix >> 31 ? prefix & 0x7fffffffu : ~prefix;
    u64 each = row.mass(float_of(bits));
    u64 nth = by_mass ? rest / each : rest;
    Cut cut = {prefix, 0, mass + (nth + 1) * each};
    cut.id = find_by_id(row, shared, nth, [&](u32 id) -> u64 {
        float logit = row.logit(id);
        return row.key(logit) == prefix && included(logit, prefix, id);
    });
    return cut;
}

DEVICE u32 draw(const Row& row, Shared& shared, const SampleParams& p) {
    double u = uniform(p.seed, p.step);
    u32 top_k = p.top_k == 0 || p.top_k > row.vocabulary ? row.vocabulary : p.top_k;
    if (top_k == row.vocabulary && p.top_p >= 1.0f && p.min_p == 0.0f) {
        double sum = 0.0;
        for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x)
            sum += (double)row.weight(row.logit(id));
        double all = block_reduce(sum, (double*)shared.scratch, Sum());
        return find_by_id(row, shared, u * all,
                          [&](u32 id) { return (double)row.weight(row.logit(id)); });
    }
    // Likelier tokens first, every filter keeps a prefix: the shortest one decides.
    Cut cut = {0, NONE, 0};
    if (top_k < row.vocabulary) {
        auto all = [](float, u32, u32) { return true; };
        cut = find_ranked(row, shared, false, top_k - 1, all);
    }
    auto kept_mass = [&](float least) {
        u64 sum = 0;
        for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x) {
            float logit = row.logit(id);
            if (up_to(cut, row.key(logit), id) && row.weight(logit) >= least)
                sum += row.mass(logit);
        }
        return block_reduce(sum, shared.scratch, Sum());
    };
    u64 mass = kept_mass(0.0f);
    if (p.top_p < 1.0f) {
        double enough = ceil((double)p.top_p * (double)mass);
        u64 target = enough < 1.0 ? 0 : (u64)enough - 1;
        auto candidate = [&](float, u32 key, u32 id) { return up_to(cut, key, id); };
        cut = find_ranked(row, shared, true, target < mass ? target : mass - 1, candidate);
    }
    mass = kept_mass(p.min_p);
    u64 target = (u64)(u * (double)mass);
    auto kept = [&](float logit, u32 key, u32 id) {
        return up_to(cut, key, id) && row.weight(logit) >= p.min_p;
    };
    return find_ranked(row, shared, true, target < mass ? target : mass - 1, kept).id;
}

/// The likeliest token that comes after `previous` in the order of likelihood, as key and ~id.
DEVICE u64 next_likeliest(const Row& row, Shared& shared, u64 previous) {
    u64 best = 0;
    for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x) {
        u64 place = (u64)row.key(row.logit(id)) << 32 | (NONE - id);
        if (place < previous && place > best) best = place;
    }
    return block_reduce(best, shared.scratch, Max());
}

/// 1 and the number of tokens that are likelier.
DEVICE u32 rank_of(const Row& row, Shared& shared, u32 token) {
    u64 place = (u64)row.key(row.logit(token)) << 32 | (NONE - token);
    u32 likelier = 0;
    for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x)
        likelier += ((u64)row.key(row.logit(id)) << 32 | (NONE - id)) > place;
    return 1 + block_reduce(likelier, (u32*)shared.scratch, Sum());
}

/// Puts edited logits in the place of a row's own, so that no pass over the vocabulary looks for
/// them.
DEVICE void apply(LogitEdit* edits, u32 count, float* logits) {
    // All have read the logits as they were.
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        LogitEdit edit = edits[i];
        float logit = logits[edit.token];
        edits[i].add = logit;
        logits[edit.token] = Row::repeated(logit + edit.add, edit.repeat) - edit.take;
    }
    __syncthreads();
}

/// Puts the logits back that `apply` took.
DEVICE void take_back(const LogitEdit* edits, u32 count, float* logits) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) logits[edits[i].token] = edits[i].add;
    __syncthreads();
}

/// The token of a row: drawn among those that its mask allows, NONE where it allows none.
DEVICE u32 choose(Row row, Shared& shared, const SampleParams& p, const Sample& args,
                  u32 likeliest) {
    if (p.mask != NONE || p.seen != NONE || p.edits > 0) {
        u32 words = ceil_div(args.vocabulary, 32);
        if (p.mask != NONE) row.mask = args.masks + (u64)p.mask * words;
        if (p.seen != NONE) row.seen = args.masks + (u64)p.seen * words;
        row.penalty = p.repetition_penalty;
        likeliest = NONE - (u32)next_likeliest(row, shared, ~0ull);
        row.best = row.logit(likeliest);
        if (row.best == -infinite()) return NONE;
    }
    if (p.temperature == 0.0f) return likeliest;
    row.temperature = p.temperature;
    return draw(row, shared, p);
}

/// Grid: x = m. Block: whole warps, at most 1024 (1024 for a large vocabulary).
/// Shared: sizeof(Shared) = 2048 · 12 + 32 · 8 + 24 = 24856 bytes.
KERNEL(sample, Sample, 1024) {
    Shared& shared = *(Shared*)SHARED_MEMORY;
    u32 at = blockIdx.x;
    SampleParams p = args.params[at];
    float* logits = args.logits + (u64)at * args.vocabulary;
    Row row = {logits, args.vocabulary, 0.0f, 1.0f, nullptr, nullptr, 1.0f};
    u64 likeliest = next_likeliest(row, shared, ~0ull);
    u32* top_tokens = args.top_tokens + (u64)at * args.top_max;
    float* top_logprobs = args.top_logprobs + (u64)at * args.top_max;
    for (u32 i = threadIdx.x; i < args.top_max; i += blockDim.x) {
        top_tokens[i] = NONE;
        top_logprobs[i] = -infinite();
    }
    row.best = row.logit(NONE - (u32)likeliest);
    if (row.best == -infinite()) {
        if (threadIdx.x == 0) {
            args.tokens[at] = NONE;
            args.logprobs[at] = -infinite();
            args.ranks[at] = 0;
        }
        return;
    }
    double sum = 0.0;
    for (u32 id = threadIdx.x; id < row.vocabulary; id += blockDim.x)
        sum += (double)row.weight(row.logit(id));
    sum = block_reduce(sum, (double*)shared.scratch, Sum());
    float log_sum = row.best + (float)log(sum);

    u32 token = p.target;
    if (token == NONE) {
        LogitEdit* edits = args.edits + p.edits_first;
        if (p.edits > 0) apply(edits, p.edits, logits);
        token = choose(row, shared, p, args, NONE - (u32)likeliest);
        if (p.edits > 0) take_back(edits, p.edits, logits);
    }
    if (token == NONE) {
        if (threadIdx.x == 0) {
            args.tokens[at] = NONE;
            args.logprobs[at] = -infinite();
            args.ranks[at] = 0;
        }
        return;
    }
    u32 rank = p.ranked ? rank_of(row, shared, token) : 0;
    if (threadIdx.x == 0) {
        args.tokens[at] = token;
        args.logprobs[at] = row.logit(token) - log_sum;
        args.ranks[at] = rank;
    }
    // The block's threads have met since they cleared the lists.
    u64 place = ~0ull;
    for (u32 i = 0; i < p.top && i < args.top_max && i < row.vocabulary; i++) {
        place = next_likeliest(row, shared, place);
        u32 id = NONE - (u32)place;
        if (row.logit(id) == -infinite()) break;
        if (threadIdx.x == 0) {
            top_tokens[i] = id;
            top_logprobs[i] = row.logit(id) - log_sum;
        }
    }
}

EXPORT(sample)
