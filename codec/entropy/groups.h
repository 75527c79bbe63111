// The coder's loops over groups (one symbol of every lane), the same for every execution: each includes this with
// KVL_TARGET set to the function attributes it is compiled with, and gives the loops a `Lanes` that does one group (see
// `ScalarDecoder` and `ScalarEncoder` in rans.cpp).
#pragma once

#include "coder.h"

namespace {

inline uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// `K` are 0, 1, ... below the number of streams in flight: written out, so that their states stay in registers.
template <class Lanes, int... K>
KVL_TARGET void decode_groups(Flight* const* flights) {
    const uint32_t group = flights[0]->stream->lanes;
    Lanes lanes[sizeof...(K)];
    uint64_t all = UINT64_MAX;
    ((lanes[K].load(*flights[K]), all = smaller(all, flights[K]->groups_left())), ...);
    uint64_t groups = all;
    bool fed = true;
    while (groups > 0 && fed) {
        uint64_t steps = groups;
        ((lanes[K].enter(flights[K]->runs), steps = smaller(steps, flights[K]->runs.left / group)), ...);
        uint64_t taken = 0;
        for (; taken < steps; taken++) {
            fed = ((lanes[K].at <= lanes[K].limit) & ...);
            if (!fed) break;
            (lanes[K].group(), ...);
        }
        (flights[K]->runs.advance(taken * group), ...);
        if (steps == 0 && (fed = ((lanes[K].at <= lanes[K].limit) & ...))) {  // a run ends within this group
            alignas(64) uint32_t bases[KVL_LANES_MAX];
            ((flights[K]->runs.take_bases(bases, group), lanes[K].group(flights[K]->stream->tables, bases)), ...);
            taken = 1;
        }
        groups -= taken;
    }
    ((lanes[K].store(*flights[K]), flights[K]->done += (all - groups) * group), ...);
}

// The loop for `in_flight` streams; null where more than `MOST` are asked for.
template <class Lanes, int MOST>
DecodeKernel decode_groups_of(uint32_t in_flight) {
    static_assert(MOST == 1 || MOST == 2 || MOST == 4 || MOST == IN_FLIGHT_MAX, "a case below is missing");
    if (in_flight == 1) return decode_groups<Lanes, 0>;
    if constexpr (MOST >= 2)
        if (in_flight == 2) return decode_groups<Lanes, 0, 1>;
    if constexpr (MOST >= 4) {
        if (in_flight == 3) return decode_groups<Lanes, 0, 1, 2>;
        if (in_flight == 4) return decode_groups<Lanes, 0, 1, 2, 3>;
    }
    if constexpr (MOST >= 5)
        if (in_flight == 5) return decode_groups<Lanes, 0, 1, 2, 3, 4>;
    return nullptr;
}

// The encoder's loop, from the last group to the first. It stops where less than a group's worth of words has room and
// where a symbol has no code; what is left is for the code that goes symbol by symbol.
template <class Lanes>
KVL_TARGET void encode_groups(Ascent& a) {
    const Stream& s = *a.stream;
    const uint32_t group = s.lanes;
    Lanes lanes;
    lanes.load(a);
    while (a.left >= group && lanes.at - a.begin >= 2 * static_cast<int64_t>(group)) {
        const uint64_t start = a.left - group;
        const ReverseCursor before = a.runs;
        const uint32_t* table = s.tables;
        alignas(64) uint32_t bases[KVL_LANES_MAX];
        const bool one_run = a.runs.left >= group;
        if (one_run) {
            table += static_cast<uint64_t>(a.runs.table()) * KVL_SYMBOLS;
            a.runs.advance(group);
        } else {
            a.runs.take_bases(bases, group);
        }
        const uint8_t* contexts = s.contexts ? s.contexts + start : nullptr;
        if (!lanes.group(table, one_run ? nullptr : bases, s.symbols + start, contexts)) {
            a.runs = before;
            break;
        }
        a.left = start;
    }
    lanes.store(a);
}

}  // namespace
