// A head's rows turned to tokens in AVX-512, 16 by 16.
#include "direct.h"

#if KVL_X86
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "rounding.h"

#define KVL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline

namespace {

enum { STEP = 64 };

KVL_STEP void transpose(__m512 (&r)[16]) {
    __m512 a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        const __m512d p = _mm512_castps_pd(a[i]), q = _mm512_castps_pd(a[i + 1]);
        const __m512d s = _mm512_castps_pd(a[i + 2]), u = _mm512_castps_pd(a[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, s));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, s));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(q, u));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(q, u));
    }
    for (int i = 0; i < 4; i++) {
        const __m512 even_low = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), odd_low = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
        a[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        a[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        a[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
    for (int i = 0; i < 16; i++) r[i] = a[i];
}

// NaN comes through: a minimum of which one number is NaN is the second.
KVL_STEP __m512 within(__m512 numbers, uint32_t largest) {
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(largest)));
    const __m512 least = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(largest | 0x80000000u)));
    return _mm512_max_ps(least, _mm512_min_ps(most, numbers));
}

KVL_STEP __m256i bfloat16s(__m512 numbers) {
    const __m512i bits = _mm512_castps_si512(within(numbers, BFLOAT16_LARGEST));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

KVL_STEP __m256i float16s(__m512 numbers) {
    return _mm512_cvtps_ph(within(numbers, FLOAT16_LARGEST), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <uint32_t ELEMENT>
KVL_TARGET void turn_as(const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to,
                        int64_t token_stride) {
    for (uint32_t token = 0; token < tokens; token += TURN) {
        const uint32_t count = tokens - token < TURN ? tokens - token : TURN;
        for (uint32_t d = 0; d + TURN <= dim; d += TURN) {
            __m512 r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(rows + (d + i) * stride + token);
            transpose(r);
            uint8_t* place = to + token * token_stride + (ELEMENT == ELEMENT_FLOAT32 ? 4 : 2) * d;
            for (uint32_t i = 0; i < count; i++, place += token_stride) {
                if (ELEMENT == ELEMENT_FLOAT32)
                    _mm512_storeu_ps(place, r[i]);
                else
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(place),
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
    turn_plainly(rows, stride, dim / TURN * TURN, dim, tokens, to, token_stride, element);
}

// Below 2^10 in magnitude: words are wide enough. Escapes come out wrong, and are put right by who asks.
// What a row's symbols of STEP tokens stand for. `sums` of refinements and base symbols are magnitudes, as bytes: a sign,
// once a level has one, stays. Below 2^10 in magnitude, so words are wide enough.
struct Magnitudes {
    __m512i low, high;
    __mmask64 negative;
};

template <int LEVELS>
KVL_STEP Magnitudes magnitudes_of(const Row& row, uint32_t token, bool halved) {
    const auto bytes = [&](int level) KVL_TARGET { return _mm512_loadu_si512(row.symbols[level] + token); };
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
    const __m512i base = _mm512_sub_epi8(bytes(0), _mm512_set1_epi8(-128)), coarse = _mm512_abs_epi8(base);
    Magnitudes all{_mm512_cvtepu8_epi16(_mm512_castsi512_si256(coarse)),
                   _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(coarse, 1)), _mm512_movepi8_mask(base)};
    if constexpr (LEVELS > 1) {
        const __m512i first = bytes(1);
        __m512i finer = _mm512_min_epu8(first, one), any = first;
        for (int level = 2; level < LEVELS; level++) {
            const __m512i next = bytes(level);
            finer = _mm512_add_epi8(_mm512_add_epi8(finer, finer), _mm512_min_epu8(next, one));
            any = _mm512_or_si512(any, next);
        }
        all.negative |= _mm512_test_epi8_mask(any, two);
        const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(finer));
        const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(finer, 1));
        all.low = _mm512_add_epi16(_mm512_slli_epi16(all.low, LEVELS - 1), low);
        all.high = _mm512_add_epi16(_mm512_slli_epi16(all.high, LEVELS - 1), high);
    }
    if (halved) {
        const __m512i unit = _mm512_set1_epi16(1);
        all.low = _mm512_add_epi16(_mm512_slli_epi16(all.low, 2), _mm512_min_epu16(all.low, unit));
        all.high = _mm512_add_epi16(_mm512_slli_epi16(all.high, 2), _mm512_min_epu16(all.high, unit));
    }
    return all;
}

template <int LEVELS>
KVL_TARGET void take_rows_of(const Row* rows, uint32_t count, bool halved, const float* factors, uint32_t first,
                             uint32_t tokens, float* out) {
    const uint32_t whole = tokens / STEP * STEP;
    const __m512i none = _mm512_setzero_si512();
    for (const Row* row = rows; row < rows + count; row++, out += TILE) {
        const __m512 scale = _mm512_set1_ps(row->scale), mean = _mm512_set1_ps(row->mean);
        for (uint32_t t = 0; t < whole; t += STEP) {
            const Magnitudes all = magnitudes_of<LEVELS>(*row, first + t, halved);
            const __mmask32 signs[] = {static_cast<__mmask32>(all.negative), static_cast<__mmask32>(all.negative >> 32)};
            const __m512i words[] = {_mm512_mask_sub_epi16(all.low, signs[0], none, all.low),
                                     _mm512_mask_sub_epi16(all.high, signs[1], none, all.high)};
            for (int quarter = 0; quarter < 4; quarter++) {
                const __m512i half = words[quarter / 2];
                const __m256i sixteen = quarter % 2 ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
                const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(factors + first + t + 16 * quarter), scale);
                const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sixteen)), unit);
                _mm512_storeu_ps(out + t + 16 * quarter, _mm512_add_ps(product, mean));
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

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

RowKernel row_kernel_avx512() { return has_avx512() ? take_rows : nullptr; }

TurnKernel turn_kernel_avx512() {
    return has_avx512() ? turn : nullptr;
}
#endif
