// The entropy decoder in AVX-512.
#include "coder.h"

#if KVL_X86
// GCC 12 warns of its own intrinsics headers (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace {

#define KVL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

// Whole groups of 16 or 32 lanes, as long as a full vector of words can be read. Returns the symbols decoded.
template <int VECTORS>
KVL_AVX512 uint64_t decode_avx512(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in) {
    constexpr uint32_t GROUP = 16 * VECTORS;
    const __m512i slot_mask = _mm512_set1_epi32(KVL_SLOTS - 1);
    const __m512i twelve_bits = _mm512_set1_epi32(0xFFF);
    const __m512i state_low = _mm512_set1_epi32(KVL_STATE_LOW);
    __m512i x[VECTORS];
    for (int v = 0; v < VECTORS; v++) x[v] = _mm512_loadu_si512(states + 16 * v);
    uint64_t done = 0;
    while (s.symbol_count - done >= GROUP && in.end - in.at >= 2 * static_cast<int64_t>(GROUP)) {
        alignas(64) uint32_t bases[GROUP];
        const bool one_run = cursor.left >= GROUP;
        if (!one_run) {
            for (uint32_t lane = 0; lane < GROUP; lane++) {
                bases[lane] = cursor.table() * KVL_SLOTS;
                cursor.advance(1);
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            __m512i base = one_run ? _mm512_set1_epi32(static_cast<int>(cursor.table() * KVL_SLOTS))
                                   : _mm512_load_si512(bases + 16 * v);
            if (s.contexts) {
                __m128i context = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s.contexts + done + 16 * v));
                __m512i wide = _mm512_and_si512(_mm512_cvtepu8_epi32(context), _mm512_set1_epi32(1));
                base = _mm512_add_epi32(base, _mm512_slli_epi32(wide, KVL_PROBABILITY_BITS));
            }
            __m512i index = _mm512_add_epi32(base, _mm512_and_si512(x[v], slot_mask));
            __m512i slot = _mm512_i32gather_epi32(index, s.tables, 4);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(s.symbols + done + 16 * v), _mm512_cvtepi32_epi8(slot));
            __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(slot, 8), twelve_bits);
            __m512i next = _mm512_add_epi32(
                _mm512_mullo_epi32(frequency, _mm512_srli_epi32(x[v], KVL_PROBABILITY_BITS)),
                _mm512_srli_epi32(slot, 20));
            __mmask16 low = _mm512_cmplt_epu32_mask(next, state_low);
            __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in.at)));
            __m512i refilled = _mm512_or_si512(_mm512_slli_epi32(next, 16), _mm512_maskz_expand_epi32(low, words));
            x[v] = _mm512_mask_mov_epi32(next, low, refilled);
            in.at += 2 * __builtin_popcount(low);
        }
        if (one_run) cursor.advance(GROUP);
        done += GROUP;
    }
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_si512(states + 16 * v, x[v]);
    return done;
}

}  // namespace

uint64_t decode_avx512_1(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in) {
    return decode_avx512<1>(s, cursor, states, in);
}

uint64_t decode_avx512_2(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in) {
    return decode_avx512<2>(s, cursor, states, in);
}
#endif
