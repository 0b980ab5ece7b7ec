// What every kernel shares: widths, 16-byte loads, reductions, tensor-core and async-copy wrappers.
// Nothing is included but this and deltas.cuh.
//
// Widths are chosen when a kernel is compiled: TESSERA_X of activations and base weights, TESSERA_P
// of adapters' parameters, TESSERA_KV of keys and values; each is bf16, f16 or float. Sizes are
// run-time numbers. A kernel takes one struct by value, laid out as #[repr(C)] does. All shared
// memory is dynamic; the comment above a kernel gives its bytes and its grid, the last word of
// KERNEL the most threads of a block. A row's place in memory is always computed in 64 bits.
//
// With TESSERA_EMULATE the same text compiles as C++: what has no C++ spelling has a twin here.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

#ifndef TESSERA_X
#define TESSERA_X bf16
#endif
#ifndef TESSERA_P
#define TESSERA_P bf16
#endif
#ifndef TESSERA_KV
#define TESSERA_KV bf16
#endif
typedef TESSERA_X X;
typedef TESSERA_P P;
typedef TESSERA_KV KV;

#ifdef TESSERA_EMULATE
#define SHARED_MEMORY emulate::shared_memory()
#define KERNEL(name, Args, threads) \
    typedef Args name##_args;       \
    static void name(Args args)
#else
#define SHARED_MEMORY shared_bytes
extern __shared__ __align__(16) u8 shared_bytes[];
#define KERNEL(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args)
#define EXPORT(name)
// A constant or function that one choice of widths has no use for.
#pragma nv_diag_suppress 177
#endif

#define DEVICE __device__ __forceinline__

/// Columns of one thread: 16 bytes of a 16-bit width.
const u32 LANE_COLUMNS = 8;

template <class A, class B>
struct Same {
    static const bool yes = false;
};
template <class A>
struct Same<A, A> {
    static const bool yes = true;
};

template <class A>
struct Pointee;
template <class A>
struct Pointee<A*> {
    typedef A Type;
};
template <class A>
struct Pointee<const A*> {
    typedef A Type;
};

// ---- Widths

DEVICE u32 bits_of(float x) {
#ifdef TESSERA_EMULATE
    return emulate::cast<u32>(x);
#else
    return __float_as_uint(x);
#endif
}

DEVICE float float_of(u32 bits) {
#ifdef TESSERA_EMULATE
    return emulate::cast<float>(bits);
#else
    return __uint_as_float(bits);
#endif
}

/// Rounded by itself, whatever is added to it.
DEVICE float product(float a, float b) {
#ifdef TESSERA_EMULATE
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}

DEVICE float infinite() { return float_of(0x7f800000); }

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return float_of((u32)x.bits << 16); }
DEVICE float widen(f16 x) {
#ifdef TESSERA_EMULATE
    return emulate::half_to_float(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <class T>
DEVICE T narrow(float x);
template <>
DEVICE float narrow<float>(float x) {
    return x;
}
/// To nearest, ties to even, as every width.
template <>
DEVICE bf16 narrow<bf16>(float x) {
    bf16 y;
#ifdef TESSERA_EMULATE
    u32 bits = bits_of(x);
    y.bits = x == x ? (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (u16)0x7fff;
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}
template <>
DEVICE f16 narrow<f16>(float x) {
    f16 y;
#ifdef TESSERA_EMULATE
    y.bits = emulate::float_to_half(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}

/// What x becomes when it is stored as an activation and read again. Fused kernels round where the
/// separate kernels would store, so that a row's bits do not depend on which of the two ran.
DEVICE float rounded(float x) { return widen(narrow<X>(x)); }

DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 ceil_div(u32 a, u32 b) { return (u32)(((u64)a + b - 1) / b); }

// ---- Loads and stores

struct __align__(16) Bits16 {
    u32 word[4];
};

DEVICE bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

DEVICE Bits16 load16(const void* p) {
#ifdef TESSERA_EMULATE
    emulate::check(aligned16(p), "a 16-byte load is not aligned");
#endif
    return *(const Bits16*)p;
}

/// 8 numbers of a 16-bit width as they stand; those from `count` on are 0.
template <class T>
DEVICE Bits16 load8_bits(const T* p, u32 count) {
    if (count >= 8 && aligned16(p)) return load16(p);
    Bits16 all;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 low = 2 * i < count ? p[2 * i].bits : 0;
        u32 high = 2 * i + 1 < count ? p[2 * i + 1].bits : 0;
        all.word[i] = low | high << 16;
    }
    return all;
}

/// 8 numbers as they stand in memory.
template <class T>
struct Raw8 {
    Bits16 part[sizeof(T) / 2];
};

/// Those from `count` on are 0.
template <class T>
DEVICE Raw8<T> load8_raw(const T* p, u32 count) {
    Raw8<T> raw;
    if constexpr (sizeof(T) == 2) {
        raw.part[0] = load8_bits(p, count);
    } else if (count >= 8 && aligned16(p)) {
        raw.part[0] = load16(p);
        raw.part[1] = load16(p + 4);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) raw.part[i / 4].word[i % 4] = i < count ? bits_of(p[i]) : 0;
    }
    return raw;
}

template <class T>
DEVICE void widen8(const Raw8<T>& raw, float (&v)[8]) {
    const T* each = (const T*)&raw;
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = widen(each[i]);
}

template <class T>
DEVICE Raw8<T> narrow8(const float (&v)[8]) {
    Raw8<T> raw;
    T* each = (T*)&raw;
#pragma unroll
    for (u32 i = 0; i < 8; i++) each[i] = narrow<T>(v[i]);
    return raw;
}

/// 8 numbers, widened; those from `count` on are 0.
template <class T>
DEVICE void load8(const T* p, u32 count, float (&v)[8]) {
    widen8(load8_raw(p, count), v);
}

/// The first `count` of 8 numbers, rounded to T.
template <class T>
DEVICE void store8(T* p, u32 count, const float (&v)[8]) {
    if (count >= 8 && aligned16(p)) {
        *(Raw8<T>*)p = narrow8<T>(v);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++)
        if (i < count) p[i] = narrow<T>(v[i]);
}

// ---- Reductions

const u32 WARP = 32;
const u32 ALL_LANES = 0xffffffffu;
/// Numbers of scratch that a block's reduction needs.
const u32 REDUCE_SCRATCH = 32;

DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }

struct Sum {
    template <class V>
    DEVICE V operator()(V a, V b) const {
        return a + b;
    }
};
struct Max {
    template <class V>
    DEVICE V operator()(V a, V b) const {
        return a > b ? a : b;
    }
};

template <class V, class Op>
DEVICE V warp_reduce(V v, Op op) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) v = op(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

/// Over all threads, in a fixed order; every thread gets the result. `scratch`: shared
/// [REDUCE_SCRATCH]. The block has whole warps only.
template <class V, class Op>
DEVICE V block_reduce(V v, V* scratch, Op op) {
    v = warp_reduce(v, op);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    V all = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) all = op(all, scratch[warp]);
    // The next reduction writes the scratch again.
    __syncthreads();
    return all;
}

// ---- Async copies and tensor cores

/// 16 bytes to shared memory, there after copy_wait and a barrier; zeros when not `valid`.
DEVICE void copy_async16(void* shared, const void* global, bool valid) {
#ifdef TESSERA_EMULATE
    emulate::check(aligned16(shared) && aligned16(global), "an async copy is not aligned");
    emulate::copy_async(shared, global, valid);
#else
    u32 to;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(to) : "l"(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

DEVICE void copy_commit() {
#ifdef TESSERA_EMULATE
    emulate::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits for this thread's copies but those of the last `pending` groups.
template <int pending>
DEVICE void copy_wait() {
#ifdef TESSERA_EMULATE
    emulate::copy_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

/// Four 8×8 tiles of 16-bit numbers from shared memory: lane i gives the address of row i % 8 of
/// tile i / 8; out[j] holds tile j's (row lane / 4, columns 2 · (lane % 4) and the next), of its
/// transpose when `transposed`.
template <bool transposed>
DEVICE void load_tiles(u32 (&out)[4], const void* row) {
#ifdef TESSERA_EMULATE
    emulate::check(aligned16(row), "a tile's row is not aligned");
    emulate::load_tiles(out, row, transposed);
#else
    u32 from;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(from) : "l"(row));
#define LOAD_TILES(form)                                                                    \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                   \
                 : "r"(from)                                                                \
                 : "memory")
    if (transposed)
        LOAD_TILES(".trans");
    else
        LOAD_TILES("");
#endif
}

#ifdef TESSERA_EMULATE
#define MMA(type)                                                               \
    emulate::mma(d, a, b, [](u16 bits) {                                        \
        type x;                                                                 \
        x.bits = bits;                                                          \
        return widen(x);                                                        \
    })
#else
#define MMA(type)                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type                     \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

/// d [16, 8] += a [16, 16] · b [16, 8] over a warp. With g = lane / 4 and t = lane % 4, d holds
/// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1); a pairs from (g, 2t), (g + 8, 2t),
/// (g, 2t + 8), (g + 8, 2t + 8); b pairs down its columns from (2t, g), (2t + 8, g).
template <class T>
DEVICE void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
template <>
DEVICE void mma<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    MMA(bf16);
}
template <>
DEVICE void mma<f16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    MMA(f16);
}
