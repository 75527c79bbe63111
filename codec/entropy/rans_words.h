// 32 lanes at a time in AVX-512, their states as words: the lower halves in one vector, the upper ones in another, lane
// after lane. A slot is then twelve bits of a word, and what it tells is looked up and taken out of all states together.
//
// Included by the files that give KVL_TARGET what `Expand` needs: it puts words one after the other where a mask has
// lanes.
#pragma once

#include "groups.h"

namespace {

KVL_STEP __m512i joined_halves(__m256i lower, __m256i upper) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

// The lower halves of 32 numbers.
KVL_STEP __m512i words_of(__m512i first, __m512i second) {
    return joined_halves(_mm512_cvtepi32_epi16(first), _mm512_cvtepi32_epi16(second));
}

template <class Expand>
struct WordDecoder {
    __m512i low, high;
    const uint8_t* at;
    const uint8_t* limit;
    const uint8_t* contexts;
    ShiftCursor shifts;
    const uint32_t* slots;
    const uint16_t* search;
    uint8_t* symbols;

    // What is found of slots; biases are the slots less their symbol's first.
    struct Found {
        __m512i numbers, frequencies, biases;
    };

    KVL_STEP void load(const Flight& f) {
        const __m512i first = _mm512_load_si512(f.states), second = _mm512_load_si512(f.states + 16);
        low = words_of(first, second);
        high = words_of(_mm512_srli_epi32(first, 16), _mm512_srli_epi32(second, 16));
        shifts = f.shifts;
        at = f.at;
        limit = f.limit;
        contexts = f.stream->contexts ? f.stream->contexts + f.done : nullptr;
        symbols = f.stream->symbols + f.done;
    }

    KVL_STEP void store(Flight& f) const {
        for (int half = 0; half < 2; half++) {
            const __m512i upper = _mm512_slli_epi32(half_of(high, half), 16);
            _mm512_store_si512(f.states + 16 * half, _mm512_or_si512(upper, half_of(low, half)));
        }
        f.at = at;
        f.shifts = shifts;
    }

    KVL_STEP void enter(const RunCursor& runs) { slots = runs.slots(), search = runs.search(); }

    // 16 of 32 words as numbers.
    static KVL_STEP __m512i half_of(__m512i words, int half) {
        return _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words));
    }

    static KVL_STEP __m512i words_at(const uint8_t* bytes) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    }

    KVL_STEP __m512i slot() const { return _mm512_and_si512(low, _mm512_set1_epi16(KVL_SLOTS - 1)); }

    // A symbol of every lane, looked up. `bases` holds the first slot of each lane's table, counted from `table`; null
    // where all use `table`.
    KVL_STEP void group(const uint32_t* table, const uint32_t* bases) {
        const __m512i own = slot(), twelve_bits = _mm512_set1_epi32(KVL_SLOTS - 1);
        const __m512i context = contexts ? words_at(contexts) : _mm512_setzero_si512();
        const __m512i tables = shifts.at ? _mm512_add_epi16(context, words_at(shifts.at)) : context;
        __m512i entries[2];
        for (int half = 0; half < 2; half++) {
            __m512i index = _mm512_slli_epi32(half_of(tables, half), KVL_PROBABILITY_BITS);
            index = _mm512_or_si512(index, half_of(own, half));
            if (bases) index = _mm512_add_epi32(index, _mm512_load_si512(bases + 16 * half));
            entries[half] = _mm512_i32gather_epi32(index, table, 4);
        }
        Found all;
        all.numbers = _mm512_and_si512(words_of(entries[0], entries[1]), _mm512_set1_epi16(KVL_SYMBOLS - 1));
        all.frequencies = words_of(_mm512_and_si512(_mm512_srli_epi32(entries[0], 8), twelve_bits),
                                   _mm512_and_si512(_mm512_srli_epi32(entries[1], 8), twelve_bits));
        all.biases = words_of(_mm512_srli_epi32(entries[0], 20), _mm512_srli_epi32(entries[1], 20));
        finish(own, all);
    }

    // Writes the symbols, takes them out of the states (see `kvl_decode_step`: frequency x (upper half x 16 + the four
    // bits beside the slot) + bias) and gives those below their range words from `at` on.
    KVL_STEP void finish(__m512i slot, const Found& all) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols), _mm512_cvtepi16_epi8(all.numbers));
        const __m512i scaled = _mm512_slli_epi16(all.frequencies, 4);
        // At most 4095 x 15 + 4095: a word.
        const __m512i rest = _mm512_add_epi16(_mm512_mulhi_epu16(scaled, _mm512_sub_epi16(low, slot)), all.biases);
        const __m512i lower = _mm512_add_epi16(_mm512_mullo_epi16(scaled, high), rest);
        const __mmask32 carry = _mm512_cmplt_epu16_mask(lower, rest);
        const __m512i product = _mm512_mulhi_epu16(scaled, high);
        const __m512i upper = _mm512_mask_sub_epi16(product, carry, product, _mm512_set1_epi16(-1));
        const __mmask32 below = _mm512_testn_epi16_mask(upper, upper);
        high = _mm512_mask_mov_epi16(upper, below, lower);
        low = Expand::words(lower, below, at);
        at += 2 * _mm_popcnt_u32(below);
        step();
    }

    KVL_STEP void step() {
        symbols += KVL_LANES_MAX;
        if (contexts) contexts += KVL_LANES_MAX;
        if (shifts.at) shifts.advance(KVL_LANES_MAX);
    }
};

// Base symbols: five steps of a binary search among the starts of 30 symbols around zero, once more for every shift that
// tokens of the group have. What is beyond is looked up one by one.
template <class Expand>
struct BaseDecoder : WordDecoder<Expand> {
    enum { SINGLES_MAX = 8 };
    using Words = WordDecoder<Expand>;
    using Found = typename Words::Found;
    const uint16_t* search_end;

    KVL_STEP void enter(const RunCursor& runs) {
        Words::enter(runs);
        search_end = runs.stream->search + 2 * SEARCH_ENTRIES * (SEARCH_CLASSES - 1);
    }

    // A symbol of every lane, where a run ends among them.
    KVL_STEP void group(const uint32_t* table, const uint32_t* bases) { Words::group(table, bases); }

    // In which entry of a table each slot lies.
    static KVL_STEP __m512i entry_of(__m512i slot, __m512i starts) {
        __m512i found = _mm512_setzero_si512();
#define KVL_HALVE(STEP)                                                                                  \
    {                                                                                                    \
        const __m512i middle = _mm512_or_si512(found, _mm512_set1_epi16(STEP));                          \
        const __mmask32 above = _mm512_cmpge_epu16_mask(slot, _mm512_permutexvar_epi16(middle, starts)); \
        found = _mm512_mask_mov_epi16(found, above, middle);                                             \
    }
        KVL_HALVE(16) KVL_HALVE(8) KVL_HALVE(4) KVL_HALVE(2) KVL_HALVE(1)
#undef KVL_HALVE
        return found;
    }

    // Takes from a table what the lanes of `which` find there.
    static KVL_STEP void take(const uint16_t* table, __m512i slot, __mmask32 which, Found& all) {
        const __m512i starts = _mm512_loadu_si512(table), counts = _mm512_loadu_si512(table + SEARCH_ENTRIES);
        const __m512i entry = entry_of(slot, starts);
        all.numbers = _mm512_mask_add_epi16(all.numbers, which, entry, _mm512_set1_epi16(SEARCH_FIRST));
        all.frequencies = _mm512_mask_permutexvar_epi16(all.frequencies, which, entry, counts);
        all.biases = _mm512_mask_sub_epi16(all.biases, which, slot, _mm512_permutexvar_epi16(entry, starts));
    }

    // Searches for the slots of `left`, the lanes with a shift, once more, in the tables of their shifts.
    KVL_STEP void take_shifted(__m512i slot, __mmask32 left, Found& all) const {
        const __m512i shift = Words::words_at(this->shifts.at);
        do {
            const uint32_t own = this->shifts.at[__builtin_ctz(left)];
            const __mmask32 same = _mm512_cmpeq_epi16_mask(shift, _mm512_set1_epi16(static_cast<short>(own)));
            const uint16_t* table = this->search + 2 * SEARCH_ENTRIES * own;
            take(table < search_end ? table : search_end, slot, same, all);
            left &= ~same;
        } while (left);
    }

    KVL_STEP void group() {
        const __m512i slot = this->slot();
        __mmask32 shifted = 0;
        if (this->shifts.at) {
            const __m512i shift = Words::words_at(this->shifts.at);
            shifted = _mm512_test_epi16_mask(shift, shift);
        }
        const __m512i starts = _mm512_loadu_si512(this->search);
        const __m512i counts = _mm512_loadu_si512(this->search + SEARCH_ENTRIES);
        const __m512i entry = entry_of(slot, starts);
        Found all{_mm512_add_epi16(entry, _mm512_set1_epi16(SEARCH_FIRST)), _mm512_permutexvar_epi16(entry, counts),
                  _mm512_sub_epi16(slot, _mm512_permutexvar_epi16(entry, starts))};
        if (shifted) take_shifted(slot, shifted, all);
        const __mmask32 beyond = _mm512_testn_epi16_mask(all.frequencies, all.frequencies);
        if (beyond) {
            if (_mm_popcnt_u32(beyond) > SINGLES_MAX) return Words::group(this->slots, nullptr);
            look_up(slot, beyond, all);
        }
        this->finish(slot, all);
    }

    // Looks up the slots of `left` one by one.
    KVL_STEP void look_up(__m512i slot, __mmask32 left, Found& all) const {
        alignas(64) uint16_t words[KVL_LANES_MAX];
        _mm512_store_si512(words, slot);
        for (; left; left &= left - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(left));
            const uint32_t shift = this->shifts.at ? this->shifts.at[lane] : 0u;
            const uint32_t entry = this->slots[(shift << KVL_PROBABILITY_BITS) + words[lane]];
            const __mmask32 here = 1u << lane;
            all.numbers = _mm512_mask_set1_epi16(all.numbers, here, static_cast<short>(kvl_slot_symbol(entry)));
            all.frequencies =
                _mm512_mask_set1_epi16(all.frequencies, here, static_cast<short>(kvl_slot_frequency(entry)));
            all.biases = _mm512_mask_set1_epi16(all.biases, here, static_cast<short>(kvl_slot_bias(entry)));
        }
    }
};

// Symbols of a refinement: two comparisons.
template <class Expand>
struct RefinementDecoder : WordDecoder<Expand> {
    using WordDecoder<Expand>::group;

    KVL_STEP void group() {
        __m512i which = this->words_at(this->contexts);
        if (this->shifts.at) which = _mm512_or_si512(which, this->words_at(this->shifts.at + this->shifts.other));
        const __m512i slot = this->slot();
        const __m512i first = _mm512_permutexvar_epi16(which, _mm512_loadu_si512(this->search));
        const __m512i second = _mm512_permutexvar_epi16(which, _mm512_loadu_si512(this->search + SEARCH_ENTRIES));
        const __mmask32 past_first = _mm512_cmpge_epu16_mask(slot, first);
        const __mmask32 past_second = _mm512_cmpge_epu16_mask(slot, second);
        const __m512i one = _mm512_set1_epi16(1);
        const __m512i start = _mm512_mask_mov_epi16(_mm512_maskz_mov_epi16(past_first, first), past_second, second);
        __m512i end = _mm512_mask_mov_epi16(first, past_first, second);
        end = _mm512_mask_mov_epi16(end, past_second, _mm512_set1_epi16(KVL_SLOTS));
        const __m512i symbol = _mm512_mask_add_epi16(_mm512_maskz_mov_epi16(past_first, one), past_second, one, one);
        this->finish(slot, {symbol, _mm512_sub_epi16(end, start), _mm512_sub_epi16(slot, start)});
    }
};

// The loop for streams of 32 lanes that are of a form.
template <class Expand>
DecodeKernel decode_words(uint32_t in_flight, Form form) {
    return (form == FORM_BASE ? decode_groups_of<BaseDecoder<Expand>, 5>
                              : decode_groups_of<RefinementDecoder<Expand>, 5>)(in_flight);
}

}  // namespace
