// Entropy decoding of a main stream, joined at once with what the levels before it told.
#pragma once

#include "streams.cuh"

// Mirrors `DECODE` in codec/cuda/jobs.py.
struct KvlDecode {
    const uint8_t* data;     // lane states, then words; 2-byte aligned
    const uint32_t* tables;  // base: [tables][4096] slots; refinement: [tables] frequency of symbol 0 | of 1 << 16
    const KvlRow* rows;      // [rows]
    const uint8_t* gains;    // [tokens]
    const int32_t* escapes;  // [escapes], of the base level
    int32_t* symbols;        // the block's; a refinement finds those of the level before, or zeros
    int32_t* status;
    uint32_t data_bytes;
    uint32_t row_count;
    uint32_t tokens;
    uint32_t lanes;
    uint32_t escape_count;
    uint32_t refining;  // 0: the base level
};

// A slot as the coder's table has it, of the three symbols of a refinement.
KVL_DEVICE uint32_t kvl_refinement_slot(uint32_t entry, uint32_t place) {
    const uint32_t first = entry & 0xFFFFu, second = first + (entry >> 16);
    const uint32_t symbol = (place >= first) + (place >= second);
    const uint32_t start = symbol == 0 ? 0 : symbol == 1 ? first : second;
    const uint32_t frequency = symbol == 0 ? first : symbol == 1 ? entry >> 16 : KVL_SLOTS - second;
    return symbol | frequency << 8 | (place - start) << 20;
}

// The symbol one level finer (`join` in codec/quantise.py).
KVL_DEVICE int32_t kvl_join(int32_t coarse, uint32_t symbol) {
    const int32_t refinement = static_cast<int32_t>(symbol);
    if (coarse == 0) return refinement == 2 ? -1 : refinement;
    return 2 * coarse + (coarse < 0 ? -refinement : refinement);
}

KVL_DEVICE int32_t kvl_decode_stream(const KvlDecode& s) {
    const uint64_t total = static_cast<uint64_t>(s.row_count) * s.tokens;
    if (s.data_bytes < 4 * s.lanes) return KVL_TRUNCATED;
    PerThread<uint32_t, KVL_WARP> states, tables;
    PerThread<KvlCursor, KVL_WARP> cursors;
    PerThread<int32_t*, KVL_WARP> places;
    PerThread<int32_t, KVL_WARP> parents;
    PerThread<bool, KVL_WARP> low, escaping, wrong;
    uint32_t at = 4 * s.lanes, escaped = 0;
    const uint32_t steps = s.refining ? 2 * KVL_CLASSES_PER_GAIN : KVL_CLASSES_PER_GAIN;

    // What a symbol's table depends on is loaded a group ahead, while the group before it is on its way.
    const auto look_ahead = [&](int lane, uint64_t symbol) {
        if (static_cast<uint32_t>(lane) < s.lanes && symbol < total) {
            const KvlCursor cursor = cursors[lane];
            const KvlRow row = s.rows[cursor.row];
            places[lane] = s.symbols + static_cast<uint64_t>(row.place) * s.tokens + cursor.token;
            tables[lane] = row.table + steps * s.gains[cursor.token];
            parents[lane] = s.refining ? *places[lane] : 0;
        }
    };

    KVL_EACH(lane, KVL_WARP) {
        const uint8_t* p = s.data + 4 * lane;
        states[lane] = static_cast<uint32_t>(lane) < s.lanes ? p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24
                                                             : KVL_STATE_LOW;
        cursors[lane].set(static_cast<uint64_t>(lane), s.tokens);
        places[lane] = s.symbols;
        tables[lane] = 0;
        parents[lane] = 0;
        look_ahead(lane, static_cast<uint64_t>(lane));
    }
    for (uint64_t start = 0; start < total; start += s.lanes) {
        PerThread<int32_t*, KVL_WARP> current;
        KVL_EACH(lane, KVL_WARP) {
            low[lane] = escaping[lane] = false;
            int32_t* const place = current[lane] = places[lane];
            const uint32_t table = tables[lane];
            const int32_t parent = parents[lane];
            cursors[lane].forward(s.lanes, s.tokens);
            look_ahead(lane, start + s.lanes + static_cast<uint64_t>(lane));
            if (static_cast<uint32_t>(lane) < s.lanes && start + static_cast<uint64_t>(lane) < total) {
                const uint32_t within = states[lane] & (KVL_SLOTS - 1);
                const uint32_t slot = s.refining ? kvl_refinement_slot(s.tables[table + (parent != 0)], within)
                                                 : s.tables[static_cast<uint64_t>(table) * KVL_SLOTS + within];
                const uint32_t symbol = kvl_slot_symbol(slot);
                states[lane] = kvl_decode_step(states[lane], slot);
                low[lane] = states[lane] < KVL_STATE_LOW;
                escaping[lane] = !s.refining && symbol == KVL_ESCAPE;
                *place = s.refining ? kvl_join(parent, symbol) : static_cast<int32_t>(symbol) - KVL_SYMBOL_ZERO;
            }
        }
        const uint32_t words = kvl_ballot(low);
        if (s.data_bytes - at < 2 * kvl_ones(words)) return KVL_TRUNCATED;
        KVL_EACH(lane, KVL_WARP) {
            if (low[lane]) {
                const uint8_t* word = s.data + at + 2 * kvl_ones(words & kvl_below(lane));
                states[lane] = kvl_refill(states[lane], *reinterpret_cast<const uint16_t*>(word));
            }
        }
        at += 2 * kvl_ones(words);
        const uint32_t escapes = kvl_ballot(escaping);
        if (escapes) {
            if (s.escape_count - escaped < kvl_ones(escapes)) return KVL_BAD_ESCAPES;
            KVL_EACH(lane, KVL_WARP) {
                if (escaping[lane]) *current[lane] = s.escapes[escaped + kvl_ones(escapes & kvl_below(lane))];
            }
            escaped += kvl_ones(escapes);
        }
    }
    if (at != s.data_bytes) return KVL_TRAILING;
    KVL_EACH(lane, KVL_WARP) { wrong[lane] = states[lane] != KVL_STATE_LOW; }
    if (kvl_ballot(wrong)) return KVL_BAD_FINAL_STATE;
    return escaped == s.escape_count ? KVL_OK : KVL_BAD_ESCAPES;
}

KVL_DEVICE void kvl_decode_body(const KvlDecode& s, uint32_t) {
    const int32_t status = kvl_decode_stream(s);
    KVL_EACH(lane, 1) { *s.status = status; }
}
