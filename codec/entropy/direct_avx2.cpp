// A head's rows turned to tokens in AVX2, 8 by 8.
#include "direct.h"

#if KVL_X86
#include <immintrin.h>

#include "rounding.h"

#define KVL_TARGET __attribute__((target("avx2,f16c")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline

namespace {

enum { SIDE = 8, STEP = 32 };

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
// What a row's symbols of STEP tokens stand for, in words: all are below 2^10 in magnitude. Magnitudes are summed as
// bytes; a sign, once a level has one, stays.
struct Numbers {
    __m256i low, high;
};

template <int LEVELS>
KVL_STEP Numbers numbers_of(const Row& row, uint32_t token, bool halved) {
    const auto bytes = [&](int level) KVL_TARGET {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.symbols[level] + token));
    };
    const __m256i one = _mm256_set1_epi8(1);
    const __m256i base = _mm256_sub_epi8(bytes(0), _mm256_set1_epi8(-128)), coarse = _mm256_abs_epi8(base);
    Numbers all{_mm256_cvtepu8_epi16(_mm256_castsi256_si128(coarse)),
                _mm256_cvtepu8_epi16(_mm256_extracti128_si256(coarse, 1))};
    __m256i negative = base;
    if constexpr (LEVELS > 1) {
        const __m256i first = bytes(1);
        __m256i finer = _mm256_min_epu8(first, one), any = first;
        for (int level = 2; level < LEVELS; level++) {
            const __m256i next = bytes(level);
            finer = _mm256_add_epi8(_mm256_add_epi8(finer, finer), _mm256_min_epu8(next, one));
            any = _mm256_or_si256(any, next);
        }
        // A refinement of 2 is the sign of what was zero before: to the top of its byte.
        negative = _mm256_or_si256(base, _mm256_slli_epi16(any, 6));
        const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(finer));
        const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(finer, 1));
        all.low = _mm256_add_epi16(_mm256_slli_epi16(all.low, LEVELS - 1), low);
        all.high = _mm256_add_epi16(_mm256_slli_epi16(all.high, LEVELS - 1), high);
    }
    if (halved) {
        const __m256i unit = _mm256_set1_epi16(1);
        all.low = _mm256_add_epi16(_mm256_slli_epi16(all.low, 2), _mm256_min_epu16(all.low, unit));
        all.high = _mm256_add_epi16(_mm256_slli_epi16(all.high, 2), _mm256_min_epu16(all.high, unit));
    }
    // A word is negated where one that is negative stands beside it, and zero where a zero does: one never does.
    const __m256i odd = _mm256_or_si256(negative, one);
    all.low = _mm256_sign_epi16(all.low, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(odd)));
    all.high = _mm256_sign_epi16(all.high, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(odd, 1)));
    return all;
}

template <int LEVELS>
KVL_TARGET void take_rows_of(const Row* rows, uint32_t count, bool halved, const float* factors, uint32_t first,
                             uint32_t tokens, float* out) {
    const uint32_t whole = tokens / STEP * STEP;
    for (const Row* row = rows; row < rows + count; row++, out += TILE) {
        const __m256 scale = _mm256_set1_ps(row->scale), mean = _mm256_set1_ps(row->mean);
        for (uint32_t t = 0; t < whole; t += STEP) {
            const Numbers all = numbers_of<LEVELS>(*row, first + t, halved);
            for (int quarter = 0; quarter < 4; quarter++) {
                const __m256i half = quarter / 2 ? all.high : all.low;
                const __m128i eight = quarter % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
                const __m256 unit = _mm256_mul_ps(_mm256_loadu_ps(factors + first + t + 8 * quarter), scale);
                const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight)), unit);
                _mm256_storeu_ps(out + t + 8 * quarter, _mm256_add_ps(product, mean));
            }
        }
        if (whole < tokens) take_row_plainly(*row, LEVELS, halved, factors, first + whole, tokens - whole, out + whole);
    }
}

void take_rows(const Row* rows, uint32_t count, uint32_t levels, bool halved, const float* factors, uint32_t first,
               uint32_t tokens, float* out) {
    decltype(&take_rows_of<1>) const of[] = {take_rows_of<1>, take_rows_of<2>, take_rows_of<3>, take_rows_of<4>};
    of[levels - 1](rows, count, halved, factors, first, tokens, out);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

}  // namespace

RowKernel row_kernel_avx2() { return has_avx2() ? take_rows : nullptr; }

TurnKernel turn_kernel_avx2() { return has_avx2() ? turn : nullptr; }
#endif
