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

enum { CHANNELS = 96 };

// A row of sums to a token, written out because a compiler keeps names in registers where it keeps an array in memory:
// 24 sums, six rows of the basis and a token's digits are all the registers but one.
#define KVL_EACH_TOKEN(DO) DO(0) DO(1) DO(2) DO(3)
// What the basis being 128 too large adds to all channels of a token is taken off first.
#define KVL_START(t)                                            \
    __m512i a##t = _mm512_set1_epi32(-128 * excess[t]), b##t = a##t, c##t = a##t, d##t = a##t, e##t = a##t, f##t = a##t;
#define KVL_ADD(t)                                           \
    four = _mm512_set1_epi32(static_cast<int>(group[t]));    \
    add_products(a##t, row_a, four);                         \
    add_products(b##t, row_b, four);                         \
    add_products(c##t, row_c, four);                         \
    add_products(d##t, row_d, four);                         \
    add_products(e##t, row_e, four);                         \
    add_products(f##t, row_f, four);
#define KVL_STORE(t)                                   \
    _mm512_storeu_si512(sums + t * CHANNELS, a##t);       \
    _mm512_storeu_si512(sums + t * CHANNELS + 16, b##t);  \
    _mm512_storeu_si512(sums + t * CHANNELS + 32, c##t);  \
    _mm512_storeu_si512(sums + t * CHANNELS + 48, d##t);  \
    _mm512_storeu_si512(sums + t * CHANNELS + 64, e##t);  \
    _mm512_storeu_si512(sums + t * CHANNELS + 80, f##t);

// vpdpbusd by name: around the intrinsic GCC 12 copies every sum to memory and back at every step.
KVL_TARGET inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i bytes, __m512i digits) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(digits));
}

KVL_TARGET void multiply(const uint32_t* digits, const uint32_t* list, uint32_t count, const uint8_t* basis,
                         const int32_t* excess, int32_t* sums) {
    KVL_EACH_TOKEN(KVL_START)
    __m512i four;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t* group = digits + i * TILE_TOKENS;
        const uint8_t* rows = basis + static_cast<uint64_t>(list[i]) * 4 * CHANNELS;
        const __m512i row_a = _mm512_loadu_si512(rows), row_b = _mm512_loadu_si512(rows + 64);
        const __m512i row_c = _mm512_loadu_si512(rows + 128), row_d = _mm512_loadu_si512(rows + 192);
        const __m512i row_e = _mm512_loadu_si512(rows + 256), row_f = _mm512_loadu_si512(rows + 320);
        KVL_EACH_TOKEN(KVL_ADD)
    }
    KVL_EACH_TOKEN(KVL_STORE)
}

static_assert(TILE_TOKENS == 4 && TILE_TOKENS * CHANNELS <= TILE_SUMS_MAX, "KVL_EACH_TOKEN names them");

}  // namespace

bool product_avx512(Product& product) {
    product = {multiply, 4, CHANNELS, Product::OFFSET_BYTES};
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif
