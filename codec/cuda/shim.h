// One source, two machines: what the kernels need of CUDA, and the same for a CPU without any.
//
// A kernel's body is a function of a job and a block number. Between operations of a whole warp or block it works in
// phases, `KVL_EACH(lane, count) { ... }`: on a GPU every thread runs the phase for itself, on a CPU a loop runs it for
// one thread after the other. What a thread keeps from phase to phase is a `PerThread`. A phase must not leave its
// braces by `break`, `continue` or `return`, and no thread may read in a phase what another writes in the same one.
#pragma once

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#include "../entropy/rans.h"

enum { KVL_WARP = 32 };

#if defined(__CUDACC__)

#define KVL_DEVICE __device__ __forceinline__
#define KVL_DEVICE_MEMBER __device__ __forceinline__
#define KVL_SHARED __shared__
#define KVL_EACH(thread, count) if (const int thread = static_cast<int>(threadIdx.x); thread < (count))

template <class T, int N>
struct PerThread {
    T value;
    __device__ __forceinline__ T& operator[](int) { return value; }
};

KVL_DEVICE uint32_t kvl_ballot(PerThread<bool, KVL_WARP>& flags) { return __ballot_sync(0xFFFFFFFFu, flags.value); }
KVL_DEVICE uint32_t kvl_warp_max(PerThread<uint32_t, KVL_WARP>& values) {
    return __reduce_max_sync(0xFFFFFFFFu, values.value);
}
// Whether any thread of the block says so; a barrier too.
template <int N>
KVL_DEVICE bool kvl_any(PerThread<bool, N>& flags) {
    return __syncthreads_or(flags.value) != 0;
}
KVL_DEVICE void kvl_barrier() { __syncthreads(); }
KVL_DEVICE uint32_t kvl_ones(uint32_t bits) { return static_cast<uint32_t>(__popc(bits)); }
KVL_DEVICE int32_t kvl_dot4(uint32_t a, uint32_t b, int32_t sum) {
    return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}
// Products and sums that no compiler joins: NumPy rounds both.
KVL_DEVICE float kvl_mul(float a, float b) { return __fmul_rn(a, b); }
KVL_DEVICE float kvl_add(float a, float b) { return __fadd_rn(a, b); }
KVL_DEVICE uint32_t kvl_bits(float value) { return __float_as_uint(value); }
KVL_DEVICE float kvl_float(uint32_t bits) { return __uint_as_float(bits); }

// Blocks `[jobs][across]`, each of `threads` threads.
#define KVL_KERNEL(name, Job, threads, body)                                                      \
    extern "C" __global__ void __launch_bounds__(threads) name(const Job* jobs, uint32_t across) { \
        body(jobs[blockIdx.x / across], blockIdx.x % across);                                     \
    }

#else  // a CPU; compile with -ffp-contract=off

#include <string.h>

#define KVL_DEVICE static inline
#define KVL_DEVICE_MEMBER inline
#define KVL_SHARED
#define KVL_EACH(thread, count) for (int thread = 0; thread < (count); thread++)

template <class T, int N>
struct PerThread {
    T values[N];
    T& operator[](int thread) { return values[thread]; }
};

KVL_DEVICE uint32_t kvl_ballot(PerThread<bool, KVL_WARP>& flags) {
    uint32_t bits = 0;
    for (int lane = 0; lane < KVL_WARP; lane++) bits |= static_cast<uint32_t>(flags[lane]) << lane;
    return bits;
}
KVL_DEVICE uint32_t kvl_warp_max(PerThread<uint32_t, KVL_WARP>& values) {
    uint32_t most = 0;
    for (int lane = 0; lane < KVL_WARP; lane++) most = values[lane] > most ? values[lane] : most;
    return most;
}
template <int N>
KVL_DEVICE bool kvl_any(PerThread<bool, N>& flags) {
    bool any = false;
    for (int thread = 0; thread < N; thread++) any |= flags[thread];
    return any;
}
KVL_DEVICE void kvl_barrier() {}
KVL_DEVICE uint32_t kvl_ones(uint32_t bits) { return static_cast<uint32_t>(__builtin_popcount(bits)); }
KVL_DEVICE int32_t kvl_dot4(uint32_t a, uint32_t b, int32_t sum) {
    for (int i = 0; i < 4; i++)
        sum += static_cast<int32_t>(static_cast<int8_t>(a >> (8 * i))) * static_cast<int8_t>(b >> (8 * i));
    return sum;
}
KVL_DEVICE float kvl_mul(float a, float b) { return a * b; }
KVL_DEVICE float kvl_add(float a, float b) { return a + b; }
KVL_DEVICE uint32_t kvl_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
KVL_DEVICE float kvl_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define KVL_KERNEL(name, Job, threads, body)                                            \
    extern "C" void name(const Job* jobs, uint32_t across, uint64_t blocks) {           \
        for (uint64_t b = 0; b < blocks; b++) body(jobs[b / across], static_cast<uint32_t>(b % across)); \
    }                                                                                   \
    extern "C" uint32_t name##_job_bytes() { return sizeof(Job); }

#endif

// The lanes below this one.
KVL_DEVICE uint32_t kvl_below(int lane) { return (1u << lane) - 1u; }
