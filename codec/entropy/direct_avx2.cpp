// A head's rows turned to tokens in AVX2, 8 by 8.
#include "direct.h"

#if KVL_X86
#include <immintrin.h>

#include "rounding.h"

#define KVL_TARGET __attribute__((target("avx2,f16c")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline

namespace {

enum { SIDE = 8 };

KVL_STEP void transpose(__m256 (&r)[8]) {
    __m256 a[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        a[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = a[i];
}

// NaN comes through: a minimum of which one number is NaN is the second.
KVL_STEP __m256 within(__m256 numbers, uint32_t largest) {
    const __m256 most = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(largest)));
    const __m256 least = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(largest | 0x80000000u)));
    return _mm256_max_ps(least, _mm256_min_ps(most, numbers));
}

KVL_STEP __m128i bfloat16s(__m256 numbers) {
    const __m256i bits = _mm256_castps_si256(within(numbers, BFLOAT16_LARGEST));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(numbers, numbers, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}

KVL_STEP __m128i float16s(__m256 numbers) {
    return _mm256_cvtps_ph(within(numbers, FLOAT16_LARGEST), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <uint32_t ELEMENT>
KVL_TARGET void turn_as(const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to,
                        int64_t token_stride) {
    for (uint32_t token = 0; token < tokens; token += SIDE) {
        const uint32_t count = tokens - token < SIDE ? tokens - token : SIDE;
        for (uint32_t d = 0; d + SIDE <= dim; d += SIDE) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows + (d + i) * stride + token);
            transpose(r);
            uint8_t* place = to + token * token_stride + (ELEMENT == ELEMENT_FLOAT32 ? 4 : 2) * d;
            for (uint32_t i = 0; i < count; i++, place += token_stride) {
                if (ELEMENT == ELEMENT_FLOAT32)
                    _mm256_storeu_ps(reinterpret_cast<float*>(place), r[i]);
                else
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(place),
                                     ELEMENT == ELEMENT_FLOAT16 ? float16s(r[i]) : bfloat16s(r[i]));
            }
        }
    }
}

void turn(const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to, int64_t token_stride,
          uint32_t element) {
    (element == ELEMENT_FLOAT32   ? turn_as<ELEMENT_FLOAT32>
     : element == ELEMENT_FLOAT16 ? turn_as<ELEMENT_FLOAT16>
                                  : turn_as<ELEMENT_BFLOAT16>)(rows, stride, dim, tokens, to, token_stride);
    turn_plainly(rows, stride, dim / SIDE * SIDE, dim, tokens, to, token_stride, element);
}

// Below 2^10 in magnitude: words are wide enough. Escapes come out wrong, and are put right by who asks.
template <int LEVELS>
KVL_TARGET void take_row_of(const uint8_t* const* symbols, bool halved, const float* factors, uint32_t count,
                            float scale, float mean, float* out) {
    const __m256i none = _mm256_setzero_si256(), one = _mm256_set1_epi16(1);
    const __m256 scales = _mm256_set1_ps(scale), means = _mm256_set1_ps(mean);
    const auto words = [&](int level, uint32_t t) KVL_TARGET {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols[level] + t)));
    };
    for (uint32_t t = 0; t + 16 <= count; t += 16) {
        __m256i number = _mm256_sub_epi16(words(0, t), _mm256_set1_epi16(128));
        for (int level = 1; level < LEVELS; level++) {
            const __m256i finer = words(level, t), sign = _mm256_srai_epi16(number, 15);
            const __m256i away = _mm256_sub_epi16(_mm256_xor_si256(finer, sign), sign);
            // All ones, which is -1, where the refinement is 2; a coarse zero with it would have come to 2.
            const __m256i negative = _mm256_cmpgt_epi16(finer, one);
            number = _mm256_blendv_epi8(_mm256_add_epi16(_mm256_add_epi16(number, number), away), negative, negative);
        }
        if (halved) {
            const __m256i above = _mm256_cmpgt_epi16(number, none), below = _mm256_srai_epi16(number, 15);
            number = _mm256_add_epi16(_mm256_sub_epi16(_mm256_slli_epi16(number, 2), above), below);
        }
        for (int half = 0; half < 2; half++) {
            const __m128i eight = half ? _mm256_extracti128_si256(number, 1) : _mm256_castsi256_si128(number);
            const __m256 whole = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight));
            const __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(factors + t + 8 * half), scales);
            _mm256_storeu_ps(out + t + 8 * half, _mm256_add_ps(_mm256_mul_ps(whole, factor), means));
        }
    }
}

void take_row(const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors, uint32_t count,
              float scale, float mean, float* out) {
    decltype(&take_row_of<1>) const of[] = {take_row_of<1>, take_row_of<2>, take_row_of<3>, take_row_of<4>};
    of[levels - 1](symbols, halved, factors, count, scale, mean, out);
    take_row_plainly(symbols, levels, halved, factors, count / 16 * 16, count, scale, mean, out);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

}  // namespace

RowKernel row_kernel_avx2() { return has_avx2() ? take_row : nullptr; }

TurnKernel turn_kernel_avx2() { return has_avx2() ? turn : nullptr; }
#endif
