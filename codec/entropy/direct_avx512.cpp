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

}  // namespace

TurnKernel turn_kernel_avx512() {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return has ? turn : nullptr;
}
#endif
