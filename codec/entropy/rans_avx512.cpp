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
#include "groups.h"

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

// 32 lanes whose slots are looked at together, as words: those of the lower 16 states are the even quarters of each 128
// bits' eighths, as packing leaves them.
struct SearchingDecoder : VectorDecoder<2> {
    const uint16_t* search;

    KVL_STEP void enter(const RunCursor& runs) {
        VectorDecoder<2>::enter(runs);
        search = runs.search();
    }

    KVL_STEP __m512i packed_slots() const {
        const __m512i twelve_bits = _mm512_set1_epi32(KVL_SLOTS - 1);
        return _mm512_packus_epi32(_mm512_and_si512(x[0], twelve_bits), _mm512_and_si512(x[1], twelve_bits));
    }

    // Words of 32 bytes that stand in the order of the lanes.
    static KVL_STEP __m512i spread_bytes(__m256i bytes) {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        return _mm512_cvtepu8_epi16(_mm256_permutevar8x32_epi32(bytes, order));
    }

    // Writes the symbols, and takes them out of the states: `biases` are the slots less their symbol's first.
    KVL_STEP void finish(__m512i numbers, __m512i frequencies, __m512i biases) {
        const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm512_cvtepi16_epi8(numbers), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols), bytes);
        const __m512i none = _mm512_setzero_si512();
        const __m512i quotients[] = {_mm512_srli_epi32(x[0], KVL_PROBABILITY_BITS),
                                     _mm512_srli_epi32(x[1], KVL_PROBABILITY_BITS)};
        const __m512i low_next =
            _mm512_add_epi32(_mm512_mullo_epi32(_mm512_unpacklo_epi16(frequencies, none), quotients[0]),
                             _mm512_unpacklo_epi16(biases, none));
        const __m512i high_next =
            _mm512_add_epi32(_mm512_mullo_epi32(_mm512_unpackhi_epi16(frequencies, none), quotients[1]),
                             _mm512_unpackhi_epi16(biases, none));
        x[0] = refilled(low_next, at);
        x[1] = refilled(high_next, at);
        step();
    }
};

// Base symbols: five steps of a binary search among the starts of 30 symbols around zero. What is beyond, and tokens with
// tables of their own, are looked up one by one.
struct BaseDecoder : SearchingDecoder {
    enum { SINGLES_MAX = 8 };
    const uint16_t* search_end;
    using VectorDecoder<2>::group;

    KVL_STEP void enter(const RunCursor& runs) {
        SearchingDecoder::enter(runs);
        search_end = runs.stream->search + 2 * SEARCH_ENTRIES * (SEARCH_CLASSES - 1);
    }

    // The decoder slot's entry of a table `shift` after the run's.
    KVL_STEP uint32_t entry_of(uint16_t slot, uint32_t shift) const {
        const uint16_t* own = search + 2 * SEARCH_ENTRIES * shift;
        own = own < search_end ? own : search_end;
        const __m512i wanted = _mm512_set1_epi16(static_cast<short>(slot));
        const uint32_t begun = _mm_popcnt_u32(_mm512_cmpge_epu16_mask(wanted, _mm512_loadu_si512(own)));
        const uint32_t place = begun ? begun - 1 : 0;
        const uint32_t count = own[SEARCH_ENTRIES + place];
        if (count == 0) return slots[(shift << KVL_PROBABILITY_BITS) + slot];
        return (SEARCH_FIRST + place) | count << 8 | static_cast<uint32_t>(slot - own[place]) << 20;
    }

    KVL_STEP void group() {
        const __m512i slot = packed_slots();
        __mmask32 single = 0;
        if (shifts.at) {
            const __m512i shift = spread_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(shifts.at)));
            single = _mm512_test_epi16_mask(shift, shift);
        }
        const __m512i starts = _mm512_loadu_si512(search), counts = _mm512_loadu_si512(search + SEARCH_ENTRIES);
        __m512i found = _mm512_setzero_si512();
#define KVL_HALVE(STEP)                                                                                  \
    {                                                                                                    \
        const __m512i middle = _mm512_or_si512(found, _mm512_set1_epi16(STEP));                          \
        const __mmask32 above = _mm512_cmpge_epu16_mask(slot, _mm512_permutexvar_epi16(middle, starts)); \
        found = _mm512_mask_mov_epi16(found, above, middle);                                             \
    }
        KVL_HALVE(16) KVL_HALVE(8) KVL_HALVE(4) KVL_HALVE(2) KVL_HALVE(1)
#undef KVL_HALVE
        __m512i frequencies = _mm512_permutexvar_epi16(found, counts);
        __m512i biases = _mm512_sub_epi16(slot, _mm512_permutexvar_epi16(found, starts));
        __m512i numbers = _mm512_add_epi16(found, _mm512_set1_epi16(SEARCH_FIRST));
        single |= _mm512_testn_epi16_mask(frequencies, frequencies);
        if (single) {
            if (_mm_popcnt_u32(single) > SINGLES_MAX) return group(slots, nullptr);
            alignas(64) uint16_t words[KVL_LANES_MAX];
            _mm512_store_si512(words, slot);
            for (uint32_t left = single; left; left &= left - 1) {
                const uint32_t word = static_cast<uint32_t>(__builtin_ctz(left));
                const uint32_t lane = (word >> 3 << 2) + (word & 3) + (word << 2 & 16);
                const uint32_t entry = entry_of(words[word], shifts.at ? shifts.at[lane] : 0u);
                const __mmask32 here = 1u << word;
                numbers = _mm512_mask_set1_epi16(numbers, here, static_cast<short>(kvl_slot_symbol(entry)));
                frequencies = _mm512_mask_set1_epi16(frequencies, here, static_cast<short>(kvl_slot_frequency(entry)));
                biases = _mm512_mask_set1_epi16(biases, here, static_cast<short>(kvl_slot_bias(entry)));
            }
        }
        finish(numbers, frequencies, biases);
    }
};

// Symbols of a refinement: two comparisons.
struct RefinementDecoder : SearchingDecoder {
    using VectorDecoder<2>::group;

    KVL_STEP void group() {
        __m256i context = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(contexts));
        if (shifts.at)
            context = _mm256_or_si256(
                context, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(shifts.at + shifts.other)));
        const __m512i which = spread_bytes(context), slot = packed_slots();
        const __m512i first = _mm512_permutexvar_epi16(which, _mm512_loadu_si512(search));
        const __m512i second = _mm512_permutexvar_epi16(which, _mm512_loadu_si512(search + SEARCH_ENTRIES));
        const __mmask32 past_first = _mm512_cmpge_epu16_mask(slot, first);
        const __mmask32 past_second = _mm512_cmpge_epu16_mask(slot, second);
        const __m512i one = _mm512_set1_epi16(1);
        const __m512i start = _mm512_mask_mov_epi16(_mm512_maskz_mov_epi16(past_first, first), past_second, second);
        __m512i end = _mm512_mask_mov_epi16(first, past_first, second);
        end = _mm512_mask_mov_epi16(end, past_second, _mm512_set1_epi16(KVL_SLOTS));
        const __m512i symbol = _mm512_mask_add_epi16(_mm512_maskz_mov_epi16(past_first, one), past_second, one, one);
        finish(symbol, _mm512_sub_epi16(end, start), _mm512_sub_epi16(slot, start));
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
    if (lanes == 32 && form == FORM_BASE) return decode_groups_of<BaseDecoder, 5>(in_flight);
    if (lanes == 32 && form == FORM_REFINEMENT) return decode_groups_of<RefinementDecoder, 5>(in_flight);
    if (lanes == 32) return decode_groups_of<VectorDecoder<2>, 2>(in_flight);
    if (lanes == 16) return decode_groups_of<VectorDecoder<1>, 4>(in_flight);
    return nullptr;
}

EncodeKernel encode_kernel_avx512(uint32_t lanes) {
    return lanes == 32 ? encode_groups<VectorEncoder<2>> : lanes == 16 ? encode_groups<VectorEncoder<1>> : nullptr;
}
#endif
