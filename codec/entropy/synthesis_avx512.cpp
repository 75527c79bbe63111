// The synthesis product in AVX-512 VNNI: signed digits times the basis as unsigned bytes, four to a lane.
#include "synthesis.h"

#if KVL_X86
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define KVL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2")))

namespace {

enum { CHANNELS = 48 };

// A row of sums to a token, written out because a compiler keeps names in registers where it keeps an array in memory.
#define KVL_EACH_TOKEN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define KVL_CLEAR(t) __m512i a##t = _mm512_setzero_si512(), b##t = a##t, c##t = a##t;
#define KVL_ADD(t)                                           \
    four = _mm512_set1_epi32(static_cast<int>(group[t]));    \
    add_products(a##t, row_a, four);                         \
    add_products(b##t, row_b, four);                         \
    add_products(c##t, row_c, four);
#define KVL_STORE(t)                                                                  \
    four = _mm512_set1_epi32(extra[t]);                                               \
    _mm512_storeu_si512(sums + t * CHANNELS, _mm512_sub_epi32(a##t, four));           \
    _mm512_storeu_si512(sums + t * CHANNELS + 16, _mm512_sub_epi32(b##t, four));      \
    _mm512_storeu_si512(sums + t * CHANNELS + 32, _mm512_sub_epi32(c##t, four));

// vpdpbusd by name: around the intrinsic GCC 12 copies every sum to memory and back at every step.
KVL_TARGET inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i bytes, __m512i digits) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(digits));
}

KVL_TARGET void multiply(const uint32_t* digits, uint64_t stride, const uint32_t* list, uint32_t count,
                         const uint8_t* basis, int32_t* sums) {
    KVL_EACH_TOKEN(KVL_CLEAR)
    __m512i four;
    // What the basis being 128 too large adds to all channels of a token.
    __m256i excess = _mm256_setzero_si256();
    const __m256i offset = _mm256_set1_epi8(static_cast<char>(128));
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t* group = digits + list[i] * stride;
        const uint8_t* rows = basis + static_cast<uint64_t>(list[i]) * 4 * CHANNELS;
        const __m512i row_a = _mm512_loadu_si512(rows), row_b = _mm512_loadu_si512(rows + 64);
        const __m512i row_c = _mm512_loadu_si512(rows + 128);
        excess = _mm256_dpbusd_epi32(excess, offset, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
        KVL_EACH_TOKEN(KVL_ADD)
    }
    alignas(32) int32_t extra[TILE_TOKENS];
    _mm256_store_si256(reinterpret_cast<__m256i*>(extra), excess);
    KVL_EACH_TOKEN(KVL_STORE)
}

}  // namespace

bool product_avx512(Product& product) {
    product = {multiply, 4, CHANNELS, Product::OFFSET_BYTES};
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif
