// The synthesis product in AVX2: digits and basis as 16-bit numbers, two to a lane.
#include "synthesis.h"

#if KVL_X86
#include <immintrin.h>

#define KVL_TARGET __attribute__((target("avx2")))

namespace {

enum { CHANNELS = 24 };

// A row of sums to a token, written out because a compiler keeps names in registers where it keeps an array in memory.
#define KVL_EACH_TOKEN(DO) DO(0) DO(1) DO(2) DO(3)
#define KVL_CLEAR(t) __m256i a##t = _mm256_setzero_si256(), b##t = a##t, c##t = a##t;
#define KVL_ADD(t)                                                          \
    two = _mm256_set1_epi32(static_cast<int>(group[t]));                    \
    a##t = _mm256_add_epi32(a##t, _mm256_madd_epi16(row_a, two));           \
    b##t = _mm256_add_epi32(b##t, _mm256_madd_epi16(row_b, two));           \
    c##t = _mm256_add_epi32(c##t, _mm256_madd_epi16(row_c, two));
#define KVL_STORE(t)                                                                   \
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + t * CHANNELS), a##t);        \
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + t * CHANNELS + 8), b##t);    \
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + t * CHANNELS + 16), c##t);

KVL_TARGET void multiply(const uint32_t* digits, const uint32_t* list, uint32_t count, const uint8_t* basis,
                         const int32_t*, int32_t* sums) {
    KVL_EACH_TOKEN(KVL_CLEAR)
    __m256i two;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t* group = digits + i * TILE_TOKENS;
        const __m256i* rows = reinterpret_cast<const __m256i*>(basis + static_cast<uint64_t>(list[i]) * 4 * CHANNELS);
        const __m256i row_a = _mm256_loadu_si256(rows), row_b = _mm256_loadu_si256(rows + 1);
        const __m256i row_c = _mm256_loadu_si256(rows + 2);
        KVL_EACH_TOKEN(KVL_ADD)
    }
    KVL_EACH_TOKEN(KVL_STORE)
}

static_assert(TILE_TOKENS == 4, "KVL_EACH_TOKEN names them");

}  // namespace

bool product_avx2(Product& product) {
    product = {multiply, 2, CHANNELS, Product::WORDS};
    return __builtin_cpu_supports("avx2");
}
#endif
