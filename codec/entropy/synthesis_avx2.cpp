// The synthesis product in AVX2: digits and basis as 16-bit numbers, two to a lane.
#include "synthesis.h"

#if KVL_X86
#include <immintrin.h>

#define KVL_TARGET __attribute__((target("avx2")))

namespace {

enum { VECTORS = 3, CHANNELS = 8 * VECTORS, TOKENS = 4 };  // twelve sums fill the registers

KVL_TARGET void multiply(const uint32_t* digits, uint64_t stride, const uint32_t* list, uint32_t count,
                         const uint8_t* basis, int32_t* sums) {
    for (int half = 0; half < TILE_TOKENS; half += TOKENS) {
        __m256i sum[TOKENS][VECTORS];
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) sum[t][v] = _mm256_setzero_si256();
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t* group = digits + list[i] * stride + half;
            const uint8_t* rows = basis + static_cast<uint64_t>(list[i]) * 4 * CHANNELS;
            __m256i row[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                row[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + 32 * v));
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; t++) {
                const __m256i two = _mm256_set1_epi32(static_cast<int>(group[t]));
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++)
                    sum[t][v] = _mm256_add_epi32(sum[t][v], _mm256_madd_epi16(row[v], two));
            }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + (half + t) * CHANNELS + 8 * v), sum[t][v]);
    }
}

}  // namespace

bool product_avx2(Product& product) {
    product = {multiply, 2, CHANNELS, Product::WORDS};
    return __builtin_cpu_supports("avx2");
}
#endif
