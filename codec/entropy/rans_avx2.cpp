// The entropy coder in AVX2, for streams of 8, 16 or 32 lanes.
#include "coder.h"

#if KVL_X86
#include <immintrin.h>

#define KVL_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline
#include "groups.h"

namespace {

// For each set of lanes that takes a word: which of the words next in line each lane takes (a lane that takes none gets
// any). One byte per lane, lane 0 lowest.
struct RefillOrder {
    uint64_t of_mask[256];

    constexpr RefillOrder() : of_mask() {
        for (uint32_t mask = 0; mask < 256; mask++) {
            uint64_t word = 0;
            for (uint32_t lane = 0; lane < 8; lane++) {
                of_mask[mask] |= (word & 7) << (8 * lane);
                word += mask >> lane & 1;
            }
        }
    }
};

constexpr RefillOrder REFILL_ORDER;

// For each set of lanes that gives up a word: those lanes in order, at the end of the vector.
struct FlushOrder {
    uint64_t of_mask[256];

    constexpr FlushOrder() : of_mask() {
        for (uint32_t mask = 0; mask < 256; mask++) {
            uint64_t place = 8;
            for (uint64_t lane = 8; lane-- > 0;)
                if (mask >> lane & 1) of_mask[mask] |= lane << (8 * --place);
        }
    }
};

constexpr FlushOrder FLUSH_ORDER;

KVL_STEP __m256i lane_order(const uint64_t& bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&bytes)));
}

// The states of one stream, 8 lanes to a vector.
template <int VECTORS>
struct VectorDecoder {
    __m256i x[VECTORS];
    const uint8_t* at;
    const uint8_t* limit;
    const uint8_t* contexts;
    ShiftCursor shifts;
    const uint32_t* slots;
    uint8_t* symbols;

    KVL_STEP void load(const Flight& f) {
        shifts = f.shifts;
        for (int v = 0; v < VECTORS; v++) x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(f.states + 8 * v));
        at = f.at;
        limit = f.limit;
        contexts = f.stream->contexts ? f.stream->contexts + f.done : nullptr;
        symbols = f.stream->symbols + f.done;
    }

    KVL_STEP void store(Flight& f) const {
        for (int v = 0; v < VECTORS; v++) _mm256_store_si256(reinterpret_cast<__m256i*>(f.states + 8 * v), x[v]);
        f.at = at;
        f.shifts = shifts;
    }

    KVL_STEP void enter(const RunCursor& runs) { slots = runs.slots(); }

    // A symbol of every lane by the table of the run entered.
    KVL_STEP void group() { group(slots, nullptr); }

    // `bases` holds the first slot of each lane's table, counted from `table`; null where all use `table`.
    KVL_STEP void group(const uint32_t* table, const uint32_t* bases) {
        const __m256i twelve_bits = _mm256_set1_epi32(KVL_SLOTS - 1);
        // Byte 0 of each of a half's four slots to its front, and the two fronts together.
        const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                   -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
        for (int v = 0; v < VECTORS; v++) {
            __m256i index = _mm256_and_si256(x[v], twelve_bits);
            if (bases) {
                const __m256i base = _mm256_load_si256(reinterpret_cast<const __m256i*>(bases + 8 * v));
                index = _mm256_add_epi32(index, base);
            }
            if (contexts) {
                const __m128i context = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(contexts + 8 * v));
                index = _mm256_add_epi32(index, _mm256_slli_epi32(_mm256_cvtepu8_epi32(context), KVL_PROBABILITY_BITS));
            }
            if (shifts.at) {
                const __m128i shift = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(shifts.at + 8 * v));
                index = _mm256_add_epi32(index, _mm256_slli_epi32(_mm256_cvtepu8_epi32(shift), KVL_PROBABILITY_BITS));
            }
            const __m256i slot = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
            const __m256i bytes = _mm256_shuffle_epi8(slot, low_bytes);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(symbols + 8 * v),
                             _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
            take(v, _mm256_and_si256(_mm256_srli_epi32(slot, 8), twelve_bits), _mm256_srli_epi32(slot, 20));
        }
        step();
    }

    // Takes a symbol of each lane out of a vector of states, and gives those below their range words from `at` on.
    KVL_STEP void take(int v, __m256i frequency, __m256i bias) {
        const __m256i quotient = _mm256_srli_epi32(x[v], KVL_PROBABILITY_BITS);
        const __m256i next = _mm256_add_epi32(_mm256_mullo_epi32(frequency, quotient), bias);
        const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256());
        const uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m256i order = lane_order(REFILL_ORDER.of_mask[mask]);
        const __m256i refilled =
            _mm256_or_si256(_mm256_slli_epi32(next, 16), _mm256_permutevar8x32_epi32(words, order));
        x[v] = _mm256_blendv_epi8(next, refilled, low);
        at += 2 * _mm_popcnt_u32(mask);
    }

    KVL_STEP void step() {
        symbols += 8 * VECTORS;
        if (contexts) contexts += 8 * VECTORS;
        if (shifts.at) shifts.advance(8 * VECTORS);
    }
};

// 32 lanes whose slots are looked at 16 together, as words in the order that packing leaves: lanes 0-3, 8-11, 4-7, 12-15.
struct SearchingDecoder : VectorDecoder<4> {
    const uint16_t* search;

    KVL_STEP void enter(const RunCursor& runs) {
        VectorDecoder<4>::enter(runs);
        search = runs.search();
    }

    static KVL_STEP uint32_t place_of(uint32_t lane) { return (lane & 19) | (lane & 8) >> 1 | (lane & 4) << 1; }

    KVL_STEP __m256i packed_slots(int half) const {
        const __m256i twelve_bits = _mm256_set1_epi32(KVL_SLOTS - 1);
        return _mm256_packus_epi32(_mm256_and_si256(x[2 * half], twelve_bits),
                                   _mm256_and_si256(x[2 * half + 1], twelve_bits));
    }

    // Writes the symbols, and takes them out of the states: `biases` are the slots less their symbol's first.
    KVL_STEP void finish(const __m256i (&numbers)[2], const __m256i (&frequencies)[2], const __m256i (&biases)[2]) {
        const __m256i none = _mm256_setzero_si256(), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(numbers[0], numbers[1]), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols), bytes);
        for (int half = 0; half < 2; half++) {
            take(2 * half, _mm256_unpacklo_epi16(frequencies[half], none), _mm256_unpacklo_epi16(biases[half], none));
            take(2 * half + 1, _mm256_unpackhi_epi16(frequencies[half], none), _mm256_unpackhi_epi16(biases[half], none));
        }
        step();
    }
};

// Symbols of a refinement: two comparisons. What they are with depends on contexts alone, which no symbol waits for.
struct RefinementDecoder : SearchingDecoder {
    enum { NEAR = 8 };  // entries that one shuffle reaches: those of tokens with small shifts
    using VectorDecoder<4>::group;

    static KVL_STEP __m256i near_entries(const uint16_t* from) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }

    // Which bytes of the near entries a lane's 16 bits are.
    static KVL_STEP __m256i entries_of(__m128i context) {
        const __m256i doubled = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11,  //
                                                 4, 4, 5, 5, 6, 6, 7, 7, 12, 12, 13, 13, 14, 14, 15, 15);
        const __m256i entry = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(context), doubled);
        return _mm256_or_si256(_mm256_add_epi8(entry, entry), _mm256_set1_epi16(0x0100));
    }

    // Puts right the borders of lanes whose entries are not near.
    KVL_STEP void take_far(uint32_t far, __m256i context, __m256i (&first)[2], __m256i (&second)[2]) const {
        alignas(32) uint8_t entries[KVL_LANES_MAX];
        alignas(32) uint16_t borders[2][KVL_LANES_MAX];
        _mm256_store_si256(reinterpret_cast<__m256i*>(entries), context);
        for (int half = 0; half < 2; half++) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(borders[0]) + half, first[half]);
            _mm256_store_si256(reinterpret_cast<__m256i*>(borders[1]) + half, second[half]);
        }
        for (; far; far &= far - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(far)), place = place_of(lane);
            borders[0][place] = search[entries[lane]];
            borders[1][place] = search[SEARCH_ENTRIES + entries[lane]];
        }
        for (int half = 0; half < 2; half++) {
            first[half] = _mm256_load_si256(reinterpret_cast<const __m256i*>(borders[0]) + half);
            second[half] = _mm256_load_si256(reinterpret_cast<const __m256i*>(borders[1]) + half);
        }
    }

    KVL_STEP void group() {
        __m256i context = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(contexts));
        uint32_t far = 0;
        if (shifts.at) {
            context = _mm256_or_si256(
                context, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(shifts.at + shifts.other)));
            far = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(context, _mm256_set1_epi8(NEAR - 1))));
        }
        const __m256i firsts = near_entries(search), seconds = near_entries(search + SEARCH_ENTRIES);
        const __m256i entries[] = {entries_of(_mm256_castsi256_si128(context)),
                                   entries_of(_mm256_extracti128_si256(context, 1))};
        __m256i first[] = {_mm256_shuffle_epi8(firsts, entries[0]), _mm256_shuffle_epi8(firsts, entries[1])};
        __m256i second[] = {_mm256_shuffle_epi8(seconds, entries[0]), _mm256_shuffle_epi8(seconds, entries[1])};
        if (far) take_far(far, context, first, second);
        const __m256i all = _mm256_set1_epi16(KVL_SLOTS);
        __m256i numbers[2], frequencies[2], biases[2];
        for (int half = 0; half < 2; half++) {
            const __m256i slot = packed_slots(half);
            const __m256i before_first = _mm256_cmpgt_epi16(first[half], slot);
            const __m256i before_second = _mm256_cmpgt_epi16(second[half], slot);
            numbers[half] = _mm256_add_epi16(_mm256_add_epi16(before_first, before_second), _mm256_set1_epi16(2));
            const __m256i start = _mm256_max_epi16(_mm256_andnot_si256(before_first, first[half]),
                                                   _mm256_andnot_si256(before_second, second[half]));
            const __m256i end = _mm256_min_epi16(_mm256_blendv_epi8(all, first[half], before_first),
                                                 _mm256_blendv_epi8(all, second[half], before_second));
            frequencies[half] = _mm256_sub_epi16(end, start);
            biases[half] = _mm256_sub_epi16(slot, start);
        }
        finish(numbers, frequencies, biases);
    }
};

// The quotient is taken in floating point and then put right. State and quotient are rounded by at most 2^-24 of
// themselves each, and the quotient is below 2^20: less a quarter, the estimate is exact or one too small.
template <int VECTORS>
struct VectorEncoder {
    __m256i x[VECTORS];
    uint8_t* at;

    KVL_STEP void load(const Ascent& a) {
        for (int v = 0; v < VECTORS; v++) x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.states + 8 * v));
        at = a.at;
    }

    KVL_STEP void store(Ascent& a) const {
        for (int v = 0; v < VECTORS; v++) _mm256_store_si256(reinterpret_cast<__m256i*>(a.states + 8 * v), x[v]);
        a.at = at;
    }

    // Whether every symbol has a code; else nothing is changed. `bases` as above, of entries.
    KVL_STEP bool group(const uint32_t* table, const uint32_t* bases, const uint8_t* symbols, const uint8_t* contexts) {
        const __m256i low_half = _mm256_set1_epi32(0xFFFF);
        __m256i entry[VECTORS];
        __m256i bad = _mm256_setzero_si256();
        for (int v = 0; v < VECTORS; v++) {
            __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(symbols + 8 * v)));
            if (bases) {
                const __m256i base = _mm256_load_si256(reinterpret_cast<const __m256i*>(bases + 8 * v));
                index = _mm256_add_epi32(index, base);
            }
            if (contexts) {
                const __m128i context = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(contexts + 8 * v));
                index = _mm256_add_epi32(index, _mm256_slli_epi32(_mm256_cvtepu8_epi32(context), 8));
            }
            entry[v] = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
            const __m256i frequency = _mm256_and_si256(entry[v], low_half);
            bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(frequency, _mm256_setzero_si256()));
            bad = _mm256_or_si256(bad, _mm256_cmpgt_epi32(frequency, _mm256_set1_epi32(KVL_SLOTS - 1)));
        }
        if (!_mm256_testz_si256(bad, bad)) return false;
        for (int v = VECTORS; v-- > 0;)
            x[v] = give(x[v], _mm256_and_si256(entry[v], low_half), _mm256_srli_epi32(entry[v], 16));
        return true;
    }

    // Writes the words that lanes must give up, and takes one symbol each into them; see `kvl_encode_step`.
    KVL_STEP __m256i give(__m256i lanes, __m256i frequency, __m256i cumulative) {
        const __m256i low_half = _mm256_set1_epi32(0xFFFF);
        const __m256i roomy = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32(lanes, 32 - KVL_PROBABILITY_BITS));
        const uint32_t full = 0xFFu ^ static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(roomy)));
        // The words go to the end of a vector that ends where the stream begins.
        const __m256i given =
            _mm256_permutevar8x32_epi32(_mm256_and_si256(lanes, low_half), lane_order(FLUSH_ORDER.of_mask[full]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at - 16),
                         _mm_packus_epi32(_mm256_castsi256_si128(given), _mm256_extracti128_si256(given, 1)));
        at -= 2 * _mm_popcnt_u32(full);
        const __m256i upper = _mm256_srli_epi32(lanes, 16);
        const __m256i state = _mm256_blendv_epi8(upper, lanes, roomy);
        const __m256 upper_half = _mm256_cvtepi32_ps(_mm256_srli_epi32(state, 16));
        const __m256 whole = _mm256_add_ps(_mm256_mul_ps(upper_half, _mm256_set1_ps(65536.0f)), _mm256_cvtepi32_ps(_mm256_and_si256(state, low_half)));
        const __m256 ratio = _mm256_div_ps(whole, _mm256_cvtepi32_ps(frequency));
        const __m256i quotient = _mm256_cvttps_epi32(_mm256_sub_ps(ratio, _mm256_set1_ps(0.25f)));
        const __m256i other_slots = _mm256_sub_epi32(_mm256_set1_epi32(KVL_SLOTS), frequency);
        const __m256i sum = _mm256_add_epi32(state, _mm256_mullo_epi32(quotient, other_slots));
        const __m256i remainder = _mm256_sub_epi32(sum, _mm256_slli_epi32(quotient, KVL_PROBABILITY_BITS));
        const __m256i exact = _mm256_cmpgt_epi32(frequency, remainder);
        return _mm256_add_epi32(_mm256_add_epi32(sum, cumulative), _mm256_andnot_si256(exact, other_slots));
    }
};

}  // namespace

bool searches_avx2(uint32_t lanes, Form form) { return lanes == 32 && form == FORM_REFINEMENT; }

DecodeKernel decode_kernel_avx2(uint32_t lanes, uint32_t in_flight, Form form) {
    if (lanes == 32 && form == FORM_REFINEMENT) return decode_groups_of<RefinementDecoder, 2>(in_flight);
    if (lanes == 32) return decode_groups_of<VectorDecoder<4>, 1>(in_flight);
    if (lanes == 16) return decode_groups_of<VectorDecoder<2>, 2>(in_flight);
    if (lanes == 8) return decode_groups_of<VectorDecoder<1>, 4>(in_flight);
    return nullptr;
}

EncodeKernel encode_kernel_avx2(uint32_t lanes) {
    if (lanes == 32) return encode_groups<VectorEncoder<4>>;
    if (lanes == 16) return encode_groups<VectorEncoder<2>>;
    if (lanes == 8) return encode_groups<VectorEncoder<1>>;
    return nullptr;
}
#endif
