// The entropy coder in AVX-512, for streams of 16 or 32 lanes.
#include "coder.h"

#if KVL_X86
// GCC 12 warns of its own intrinsics headers (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define KVL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,popcnt")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline
#include "rans_words.h"

namespace {

// States in which a symbol was undone, with those below their range given words from `at` on.
KVL_STEP __m512i refilled(__m512i next, const uint8_t*& at) {
    const __mmask16 low = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(KVL_STATE_LOW));
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    const __m512i refills = _mm512_maskz_expand_epi32(low, words);
    at += 2 * _mm_popcnt_u32(low);
    return _mm512_mask_or_epi32(next, low, _mm512_slli_epi32(next, 16), refills);
}

// The states of one stream, 16 lanes to a vector.
template <int VECTORS>
struct VectorDecoder {
    __m512i x[VECTORS];
    const uint8_t* at;
    const uint8_t* limit;
    const uint8_t* contexts;
    ShiftCursor shifts;
    const uint32_t* slots;
    uint8_t* symbols;

    KVL_STEP void load(const Flight& f) {
        for (int v = 0; v < VECTORS; v++) x[v] = _mm512_load_si512(f.states + 16 * v);
        shifts = f.shifts;
        at = f.at;
        limit = f.limit;
        contexts = f.stream->contexts ? f.stream->contexts + f.done : nullptr;
        symbols = f.stream->symbols + f.done;
    }

    KVL_STEP void store(Flight& f) const {
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(f.states + 16 * v, x[v]);
        f.at = at;
        f.shifts = shifts;
    }

    KVL_STEP void enter(const RunCursor& runs) { slots = runs.slots(); }

    // A symbol of every lane by the table of the run entered.
    KVL_STEP void group() { group(slots, nullptr); }

    // `bases` holds the first slot of each lane's table, counted from `table`; null where all use `table`.
    KVL_STEP void group(const uint32_t* table, const uint32_t* bases) {
        const __m512i twelve_bits = _mm512_set1_epi32(KVL_SLOTS - 1);
        for (int v = 0; v < VECTORS; v++) {
            __m512i index = _mm512_and_si512(x[v], twelve_bits);
            if (bases) index = _mm512_add_epi32(index, _mm512_load_si512(bases + 16 * v));
            if (contexts) {
                const __m128i context = _mm_loadu_si128(reinterpret_cast<const __m128i*>(contexts + 16 * v));
                index = _mm512_add_epi32(index, _mm512_slli_epi32(_mm512_cvtepu8_epi32(context), KVL_PROBABILITY_BITS));
            }
            if (shifts.at) {
                const __m128i shift = _mm_loadu_si128(reinterpret_cast<const __m128i*>(shifts.at + 16 * v));
                index = _mm512_add_epi32(index, _mm512_slli_epi32(_mm512_cvtepu8_epi32(shift), KVL_PROBABILITY_BITS));
            }
            const __m512i slot = _mm512_i32gather_epi32(index, table, 4);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + 16 * v), _mm512_cvtepi32_epi8(slot));
            const __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(slot, 8), twelve_bits);
            const __m512i quotient = _mm512_srli_epi32(x[v], KVL_PROBABILITY_BITS);
            const __m512i next =
                _mm512_add_epi32(_mm512_mullo_epi32(frequency, quotient), _mm512_srli_epi32(slot, 20));
            x[v] = refilled(next, at);
        }
        step();
    }

    KVL_STEP void step() {
        symbols += 16 * VECTORS;
        if (contexts) contexts += 16 * VECTORS;
        if (shifts.at) shifts.advance(16 * VECTORS);
    }
};

// Words next in line to the lanes of a mask, with what CPUs have from the first AVX-512 on: 16 lanes at a time.
struct ExpandNumbers {
    static KVL_STEP __m512i words(__m512i others, __mmask32 lanes, const uint8_t* at) {
        const __mmask16 lower = static_cast<__mmask16>(lanes), upper = static_cast<__mmask16>(lanes >> 16);
        const __m512i expanded = words_of(expand(lower, at), expand(upper, at + 2 * _mm_popcnt_u32(lower)));
        return _mm512_mask_mov_epi16(others, lanes, expanded);
    }

    static KVL_STEP __m512i expand(__mmask16 lanes, const uint8_t* at) {
        const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
        return _mm512_maskz_expand_epi32(lanes, next);
    }
};

// The quotient is taken in floating point and then put right. State and quotient are rounded towards zero, each by less
// than 2^-23 of itself, and the quotient is below 2^20, so the estimate is exact or one too small.
template <int VECTORS>
struct VectorEncoder {
    __m512i x[VECTORS];
    uint8_t* at;

    KVL_STEP void load(const Ascent& a) {
        for (int v = 0; v < VECTORS; v++) x[v] = _mm512_load_si512(a.states + 16 * v);
        at = a.at;
    }

    KVL_STEP void store(Ascent& a) const {
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(a.states + 16 * v, x[v]);
        a.at = at;
    }

    // Whether every symbol has a code; else nothing is changed. `bases` as above, of entries.
    KVL_STEP bool group(const uint32_t* table, const uint32_t* bases, const uint8_t* symbols, const uint8_t* contexts) {
        const __m512i one = _mm512_set1_epi32(1);
        __m512i frequency[VECTORS], cumulative[VECTORS];
        __mmask16 bad = 0;
        for (int v = 0; v < VECTORS; v++) {
            __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols + 16 * v)));
            if (bases) index = _mm512_add_epi32(index, _mm512_load_si512(bases + 16 * v));
            if (contexts) {
                const __m128i context = _mm_loadu_si128(reinterpret_cast<const __m128i*>(contexts + 16 * v));
                index = _mm512_add_epi32(index, _mm512_slli_epi32(_mm512_cvtepu8_epi32(context), 8));
            }
            const __m512i entry = _mm512_i32gather_epi32(index, table, 4);
            frequency[v] = _mm512_and_si512(entry, _mm512_set1_epi32(0xFFFF));
            cumulative[v] = _mm512_srli_epi32(entry, 16);
            bad |= _mm512_cmpge_epu32_mask(_mm512_sub_epi32(frequency[v], one), _mm512_set1_epi32(KVL_SLOTS - 1));
        }
        if (bad) return false;
        for (int v = VECTORS; v-- > 0;) x[v] = give(x[v], frequency[v], cumulative[v]);
        return true;
    }

    // Writes the words that lanes must give up, and takes one symbol each into them; see `kvl_encode_step`.
    KVL_STEP __m512i give(__m512i lanes, __m512i frequency, __m512i cumulative) {
        enum { TOWARDS_ZERO = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC };
        const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(lanes, 32 - KVL_PROBABILITY_BITS), frequency);
        const int words = _mm_popcnt_u32(full);
        // The words go to the end of a vector that ends where the stream begins.
        const __m512i order = _mm512_add_epi32(places, _mm512_set1_epi32(words));
        const __m512i given = _mm512_permutexvar_epi32(order, _mm512_maskz_compress_epi32(full, lanes));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at - 32), _mm512_cvtepi32_epi16(given));
        at -= 2 * words;
        const __m512i state = _mm512_mask_srli_epi32(lanes, full, lanes, 16);
        const __m512 ratio = _mm512_div_round_ps(_mm512_cvt_roundepu32_ps(state, TOWARDS_ZERO),
                                                 _mm512_cvtepi32_ps(frequency), TOWARDS_ZERO);
        const __m512i quotient = _mm512_cvttps_epi32(ratio);
        const __m512i other_slots = _mm512_sub_epi32(_mm512_set1_epi32(KVL_SLOTS), frequency);
        const __m512i sum = _mm512_add_epi32(state, _mm512_mullo_epi32(quotient, other_slots));
        const __m512i remainder = _mm512_sub_epi32(sum, _mm512_slli_epi32(quotient, KVL_PROBABILITY_BITS));
        const __mmask16 one_short = _mm512_cmpge_epu32_mask(remainder, frequency);
        const __m512i next = _mm512_add_epi32(sum, cumulative);
        return _mm512_mask_add_epi32(next, one_short, next, other_slots);
    }
};

}  // namespace

bool searches_avx512(uint32_t lanes, Form form) { return lanes == 32 && form != FORM_ANY; }

DecodeKernel decode_kernel_avx512(uint32_t lanes, uint32_t in_flight, Form form) {
    if (searches_avx512(lanes, form)) return decode_words<ExpandNumbers>(in_flight, form);
    if (lanes == 32) return decode_groups_of<VectorDecoder<2>, 2>(in_flight);
    if (lanes == 16) return decode_groups_of<VectorDecoder<1>, 4>(in_flight);
    return nullptr;
}

EncodeKernel encode_kernel_avx512(uint32_t lanes) {
    return lanes == 32 ? encode_groups<VectorEncoder<2>> : lanes == 16 ? encode_groups<VectorEncoder<1>> : nullptr;
}
#endif
