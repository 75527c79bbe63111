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

enum { VECTORS = 3, CHANNELS = 16 * VECTORS };

KVL_TARGET void multiply(const uint32_t* digits, uint64_t stride, const uint32_t* list, uint32_t count,
                         const uint8_t* basis, int32_t* sums) {
    __m512i sum[TILE_TOKENS][VECTORS];
    for (int t = 0; t < TILE_TOKENS; t++)
        for (int v = 0; v < VECTORS; v++) sum[t][v] = _mm512_setzero_si512();
    // What the basis being 128 too large adds to all channels of a token.
    __m256i excess = _mm256_setzero_si256();
    const __m256i offset = _mm256_set1_epi8(static_cast<char>(128));
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t* group = digits + list[i] * stride;
        const uint8_t* rows = basis + static_cast<uint64_t>(list[i]) * 4 * CHANNELS;
        __m512i row[VECTORS];
        for (int v = 0; v < VECTORS; v++) row[v] = _mm512_loadu_si512(rows + 64 * v);
        excess = _mm256_dpbusd_epi32(excess, offset, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
#pragma GCC unroll 8
        for (int t = 0; t < TILE_TOKENS; t++) {
            const __m512i four = _mm512_set1_epi32(static_cast<int>(group[t]));
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) sum[t][v] = _mm512_dpbusd_epi32(sum[t][v], row[v], four);
        }
    }
    alignas(32) int32_t extra[TILE_TOKENS];
    _mm256_store_si256(reinterpret_cast<__m256i*>(extra), excess);
    for (int t = 0; t < TILE_TOKENS; t++)
        for (int v = 0; v < VECTORS; v++)
            _mm512_storeu_si512(sums + t * CHANNELS + 16 * v, _mm512_sub_epi32(sum[t][v], _mm512_set1_epi32(extra[t])));
}

}  // namespace

bool product_avx512(Product& product) {
    product = {multiply, 4, CHANNELS, Product::OFFSET_BYTES};
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif
