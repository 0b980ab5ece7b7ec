// Runs a kernel as C++: every thread of a block is a fiber, barriers and warp-wide operations are
// yields. Included before a kernel's own text. Blocks run one after another on the caller's thread.
//
// Made to find faults: shared memory is NaN when a block starts and has canaries behind it; threads
// run as far as they can, in order or in reverse, so that a missing barrier shows; an async copy
// lands when it is waited for, or in reverse at once; a barrier that not all threads reach is an
// error; a fault of memory names the kernel.
#pragma once
#include <signal.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define TESSERA_EMULATE 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

namespace emulate {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

enum class State { ready, at_warp, at_block, done };

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

const size_t STACK_BYTES = 256 << 10;
const size_t CANARY_BYTES = 256;

#if defined(__x86_64__)
// Saves what a call must keep, swaps stacks, restores.
extern "C" void emulate_switch(void** from, void* to);
asm(R"(
.text
.hidden emulate_switch
.globl emulate_switch
emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    State state = State::ready;
    Dim thread;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
};

struct Slot {
    alignas(16) unsigned char bytes[64];
};

struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Slot> slots;
    std::vector<unsigned char> shared_area;
    unsigned char* shared = nullptr;
    Fiber* running = nullptr;
    size_t index = 0;
    Dim grid, block, at;
    void (*entry)(const void*) = nullptr;
    const void* args = nullptr;
    const char* error = nullptr;
    const char* name = nullptr;
    bool reverse = false;
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
};

inline Machine& machine() {
    static thread_local Machine one;
    return one;
}

inline void check(bool fine, const char* message) {
    if (!fine && !machine().error) machine().error = message;
}

inline unsigned char* shared_memory() { return machine().shared; }

// ---- Fibers

inline void to_scheduler() {
    Machine& m = machine();
#if defined(__x86_64__)
    emulate_switch(&m.running->sp, m.scheduler);
#else
    swapcontext(&m.running->context, &m.scheduler);
#endif
}

inline void to_fiber(size_t index) {
    Machine& m = machine();
    m.index = index;
    m.running = m.fibers[index].get();
#if defined(__x86_64__)
    emulate_switch(&m.scheduler, m.running->sp);
#else
    swapcontext(&m.scheduler, &m.running->context);
#endif
}

inline void fiber_main() {
    Machine& m = machine();
    m.entry(m.args);
    check(m.running->groups.empty() && m.running->open.empty(), "an async copy is not waited for");
    m.running->state = State::done;
    to_scheduler();
}

inline void prepare(Fiber& f) {
    f.state = State::ready;
    f.groups.clear();
    f.open.clear();
#if defined(__x86_64__)
    uintptr_t top = ((uintptr_t)f.stack.get() + STACK_BYTES) & ~(uintptr_t)15;
    void** sp = (void**)top;
    *--sp = nullptr;  // where fiber_main would return to; also aligns its frame
    *--sp = (void*)fiber_main;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f.sp = sp;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = STACK_BYTES;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
#endif
}

inline void wait(State state) {
    machine().running->state = state;
    to_scheduler();
}

// Runs the block to its end. Warps and lanes take turns in order, or in reverse.
inline void run_block() {
    Machine& m = machine();
    bool reverse = m.reverse;
    size_t n = m.block.x * m.block.y * m.block.z;
    auto place = [&](size_t i, size_t count) { return reverse ? count - 1 - i : i; };
    size_t warps = (n + 31) / 32;
    for (;;) {
        bool moved = false;
        for (size_t w = 0; w < warps; w++) {
            size_t first = place(w, warps) * 32, lanes = n - first < 32 ? n - first : 32;
            for (bool again = true; again;) {
                again = false;
                for (size_t l = 0; l < lanes; l++) {
                    size_t i = first + place(l, lanes);
                    if (m.fibers[i]->state == State::ready) {
                        to_fiber(i);
                        moved = true;
                    }
                }
                size_t waiting = 0;
                for (size_t l = 0; l < lanes; l++)
                    waiting += m.fibers[first + l]->state == State::at_warp;
                // A warp-wide operation names all 32 lanes.
                if (waiting == 32) {
                    for (size_t l = 0; l < lanes; l++) m.fibers[first + l]->state = State::ready;
                    again = true;
                }
            }
        }
        size_t done = 0, waiting = 0;
        for (size_t i = 0; i < n; i++) {
            done += m.fibers[i]->state == State::done;
            waiting += m.fibers[i]->state == State::at_block;
        }
        if (done == n) return;
        if (waiting == n) {
            for (size_t i = 0; i < n; i++) m.fibers[i]->state = State::ready;
        } else if (!moved) {
            return check(false, "not all threads reach a barrier");
        }
    }
}

// ---- What kernels call

template <class To, class From>
To cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

inline float half_to_float(uint16_t h) {
    int exponent = h >> 10 & 31;
    float fraction = (float)(h & 1023);
    float x = exponent == 0    ? std::ldexp(fraction, -24)
              : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                               : std::ldexp(1024 + fraction, exponent - 25);
    return h >> 15 ? -x : x;
}

inline uint16_t float_to_half(float x) {
    uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    float a = std::fabs(x);
    if (x != x) return sign | 0x7fff;
    if (a >= 65520) return sign | 0x7c00;
    int exponent;
    std::frexp(a, &exponent);
    // The last place of the result: 2^-24 below the normal range. rintf rounds ties to even.
    int unit = a < 6.103515625e-05f ? -24 : exponent - 11;
    float steps = std::rint(std::ldexp(a, -unit));
    if (unit == -24 && steps < 1024) return sign | (uint16_t)steps;
    if (steps == 2048) return sign | (uint16_t)((unit + 26) << 10);
    return sign | (uint16_t)(((unit + 25) << 10) + (int)steps - 1024);
}

template <class V>
void publish(const V& v) {
    static_assert(sizeof(V) <= sizeof(Slot), "");
    Machine& m = machine();
    memcpy(m.slots[m.index].bytes, &v, sizeof v);
    wait(State::at_warp);
}

template <class V>
V from_lane(unsigned lane) {
    Machine& m = machine();
    V v;
    memcpy(&v, m.slots[m.index / 32 * 32 + lane].bytes, sizeof v);
    return v;
}

inline unsigned lane() { return machine().index % 32; }

template <class V>
V exchange(const V& v, unsigned lane) {
    publish(v);
    V other = from_lane<V>(lane);
    wait(State::at_warp);
    return other;
}

struct Registers {
    uint32_t a[4], b[2];
};

template <class Widen>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Widen value) {
    Registers mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    publish(mine);
    auto half = [&](uint32_t word, unsigned k) { return value(uint16_t(word >> (k % 2 * 16))); };
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + i / 2 * 8, column = 2 * t + i % 2;
        float sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            unsigned t_of_k = k % 8 / 2;
            Registers of_row = from_lane<Registers>(row % 8 * 4 + t_of_k);
            Registers of_column = from_lane<Registers>(column * 4 + t_of_k);
            sum += half(of_row.a[row / 8 + k / 8 * 2], k) * half(of_column.b[k / 8], k);
        }
        d[i] += sum;
    }
    wait(State::at_warp);
}

inline void load_tiles(uint32_t (&out)[4], const void* row, bool transposed) {
    publish(row);
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned tile = 0; tile < 4; tile++) {
        auto at = [&](unsigned r, unsigned c) -> uint32_t {
            return ((const uint16_t*)from_lane<const void*>(tile * 8 + r))[c];
        };
        out[tile] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16
                               : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
    }
    wait(State::at_warp);
}

inline void land(const Copy& c) {
    if (c.valid)
        memcpy(c.to, c.from, 16);
    else
        memset(c.to, 0, 16);
}

inline void copy_async(void* to, const void* from, bool valid) {
    Copy copy = {to, from, valid};
    if (machine().reverse) land(copy);
    machine().running->open.push_back(copy);
}

inline void copy_commit() {
    Fiber& f = *machine().running;
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}

inline void copy_wait(size_t pending) {
    Fiber& f = *machine().running;
    while (f.groups.size() > pending) {
        if (!machine().reverse)
            for (const Copy& c : f.groups.front()) land(c);
        f.groups.erase(f.groups.begin());
    }
}

inline void on_fault(int signal) {
    const char* words[] = {"emulate: ", machine().name, " reaches memory that is not its own\n"};
    for (const char* word : words) (void)!write(2, word, strlen(word));
    ::signal(signal, SIG_DFL);
}

// `where`: grid, block, and the first and one-past-last block to run: 12 numbers.
inline const char* launch(const char* name, void (*entry)(const void*), const unsigned* where,
                          size_t shared_bytes, const void* args, bool reverse) {
    Machine& m = machine();
    m.name = name, m.reverse = reverse;
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    auto dim = [&](int i) { return Dim{where[3 * i], where[3 * i + 1], where[3 * i + 2]}; };
    m.grid = dim(0), m.block = dim(1);
    Dim first = dim(2), end = dim(3);
    size_t n = (size_t)m.block.x * m.block.y * m.block.z;
    while (m.fibers.size() < n) m.fibers.push_back(std::make_unique<Fiber>());
    m.slots.resize((n + 31) / 32 * 32);
    m.shared_area.resize(shared_bytes + CANARY_BYTES + 64);
    m.shared = (unsigned char*)(((uintptr_t)m.shared_area.data() + 63) & ~(uintptr_t)63);
    m.entry = entry, m.args = args, m.error = nullptr;
    for (unsigned z = first.z; z < end.z; z++)
        for (unsigned y = first.y; y < end.y; y++)
            for (unsigned x = first.x; x < end.x && !m.error; x++) {
                m.at = Dim{x, y, z};
                memset(m.shared, 0xff, shared_bytes + CANARY_BYTES);
                for (size_t i = 0; i < n; i++) {
                    prepare(*m.fibers[i]);
                    m.fibers[i]->thread = Dim{unsigned(i % m.block.x), 0, 0};
                }
                run_block();
                for (size_t i = 0; i < CANARY_BYTES; i++)
                    check(m.shared[shared_bytes + i] == 0xff, "shared memory is overrun");
            }
    return m.error;
}

}  // namespace emulate

#define threadIdx (emulate::machine().running->thread)
#define blockIdx (emulate::machine().at)
#define blockDim (emulate::machine().block)
#define gridDim (emulate::machine().grid)

inline void __syncthreads() { emulate::wait(emulate::State::at_block); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulate::wait(emulate::State::at_warp); }
template <class V>
V __shfl_xor_sync(unsigned, V v, unsigned mask) {
    return emulate::exchange(v, emulate::lane() ^ mask);
}
template <class V>
V __shfl_sync(unsigned, V v, unsigned lane) {
    return emulate::exchange(v, lane % 32);
}
template <class V>
V __shfl_up_sync(unsigned, V v, unsigned by) {
    unsigned lane = emulate::lane();
    return emulate::exchange(v, lane < by ? lane : lane - by);
}
template <class V>
V atomicAdd(V* at, V v) {
    V before = *at;
    *at += v;
    return before;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline void __trap() { emulate::check(false, "a kernel is not made for these widths"); }

#define EXPORT(name)                                                                              \
    extern "C" size_t emulate_size_##name() { return sizeof(name##_args); }                       \
    extern "C" const char* emulate_##name(const unsigned* where, size_t shared_bytes,             \
                                          const void* args, bool reverse) {                       \
        auto entry = [](const void* args) { name(*(const name##_args*)args); };                   \
        return emulate::launch(#name, entry, where, shared_bytes, args, reverse);                 \
    }
