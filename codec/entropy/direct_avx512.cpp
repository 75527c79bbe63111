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
template <int LEVELS>
KVL_TARGET void take_row_of(const uint8_t* const* symbols, bool halved, const float* factors, uint32_t count,
                            float scale, float mean, float* out) {
    const __m512i none = _mm512_setzero_si512(), one = _mm512_set1_epi16(1), minus_one = _mm512_set1_epi16(-1);
    const __m512 scales = _mm512_set1_ps(scale), means = _mm512_set1_ps(mean);
    const auto words = [&](int level, uint32_t t) KVL_TARGET {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols[level] + t)));
    };
    for (uint32_t t = 0; t + ROW <= count; t += ROW) {
        __m512i number = _mm512_sub_epi16(words(0, t), _mm512_set1_epi16(128));
        for (int level = 1; level < LEVELS; level++) {
            const __m512i finer = words(level, t), sign = _mm512_srai_epi16(number, 15);
            const __m512i away = _mm512_sub_epi16(_mm512_xor_si512(finer, sign), sign);
            const __mmask32 negative = _mm512_cmpgt_epi16_mask(finer, one);
            number = _mm512_mask_mov_epi16(_mm512_add_epi16(_mm512_add_epi16(number, number), away), negative, minus_one);
        }
        if (halved) {
            const __mmask32 above = _mm512_cmpgt_epi16_mask(number, none), below = _mm512_movepi16_mask(number);
            number = _mm512_slli_epi16(number, 2);
            number = _mm512_mask_add_epi16(number, above, number, one);
            number = _mm512_mask_sub_epi16(number, below, number, one);
        }
        for (int half = 0; half < 2; half++) {
            const __m256i sixteen = half ? _mm512_extracti64x4_epi64(number, 1) : _mm512_castsi512_si256(number);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sixteen));
            const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(factors + t + 16 * half), scales);
            _mm512_storeu_ps(out + t + 16 * half, _mm512_add_ps(_mm512_mul_ps(whole, factor), means));
        }
    }
}

void take_row(const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors, uint32_t count,
              float scale, float mean, float* out) {
    decltype(&take_row_of<1>) const of[] = {take_row_of<1>, take_row_of<2>, take_row_of<3>, take_row_of<4>};
    of[levels - 1](symbols, halved, factors, count, scale, mean, out);
    take_row_plainly(symbols, levels, halved, factors, count / ROW * ROW, count, scale, mean, out);
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

RowKernel row_kernel_avx512() { return has_avx512() ? take_row : nullptr; }

TurnKernel turn_kernel_avx512() {
    return has_avx512() ? turn : nullptr;
}
#endif
