// Quantisation, and entropy encoding of a main stream from the finest symbols.
#pragma once

#include "streams.cuh"

// Mirrors `QUANTISE` in codec/cuda/jobs.py.
struct KvlQuantise {
    const float* coefficients;  // [width][row_stride], the chunk's tokens first
    const float* factors;       // [gains] what a gain multiplies by
    const uint8_t* gains;       // [tokens]
    int32_t* symbols;           // [width][tokens]
    uint32_t* peaks;            // [width] largest magnitude of a row
    int32_t* status;
    uint64_t row_stride;
    uint32_t width;
    uint32_t tokens;
    float rounding;
    float limit;
};

// One warp, one row.
KVL_DEVICE void kvl_quantise_body(const KvlQuantise& job, uint32_t row) {
    if (row >= job.width) return;
    PerThread<uint32_t, KVL_WARP> peaks;
    KVL_EACH(lane, KVL_WARP) {
        uint32_t peak = 0;
        for (uint32_t token = static_cast<uint32_t>(lane); token < job.tokens; token += KVL_WARP) {
            const float value = kvl_mul(job.coefficients[row * job.row_stride + token], job.factors[job.gains[token]]);
            const float magnitude = value < 0 ? -value : value;
            const bool sound = magnitude < job.limit;
            if (!sound) *job.status = KVL_TOO_LARGE;
            const int32_t fine = sound ? static_cast<int32_t>(kvl_add(magnitude, job.rounding)) : 0;
            job.symbols[static_cast<uint64_t>(row) * job.tokens + token] = value < 0 ? -fine : fine;
            peak = static_cast<uint32_t>(fine) > peak ? static_cast<uint32_t>(fine) : peak;
        }
        peaks[lane] = peak;
    }
    const uint32_t peak = kvl_warp_max(peaks);
    KVL_EACH(lane, 1) { job.peaks[row] = peak; }
}

// What a stream took of its rooms, from their ends.
struct KvlEncoded {
    int32_t status;
    uint32_t data_bytes;
    uint32_t escapes;
};

// Mirrors `ENCODE` in codec/cuda/jobs.py.
struct KvlEncode {
    const int32_t* symbols;  // the block's finest ones
    const uint32_t* tables;  // [tables][256] frequency | cumulative << 16
    const KvlRow* rows;      // [rows]
    const uint8_t* gains;    // [tokens]
    uint8_t* data;           // [data_room], 2-byte aligned
    int32_t* escapes;        // [escape_room]
    KvlEncoded* encoded;
    uint32_t data_room;
    uint32_t escape_room;
    uint32_t row_count;
    uint32_t tokens;
    uint32_t lanes;
    uint32_t refining;
    uint32_t left;  // refinements that follow
};

struct KvlCoded {
    uint32_t entry;
    int32_t escape;  // the number, where `escapes`
    bool escapes;
};

KVL_DEVICE KvlCoded kvl_base_symbol(const KvlEncode& s, int32_t fine, uint32_t table) {
    const int32_t magnitude = (fine < 0 ? -fine : fine) >> s.left;
    const int32_t base = fine < 0 ? -magnitude : magnitude;
    const uint32_t* entries = s.tables + static_cast<uint64_t>(table) * KVL_SYMBOLS;
    const uint32_t entry = magnitude > KVL_SYMBOL_MAX ? 0 : entries[base + KVL_SYMBOL_ZERO];
    const bool escapes = (entry & 0xFFFFu) == 0;
    return KvlCoded{escapes ? entries[KVL_ESCAPE] : entry, base, escapes};
}

KVL_DEVICE KvlCoded kvl_refinement_symbol(const KvlEncode& s, int32_t fine, uint32_t table) {
    const uint32_t child = static_cast<uint32_t>(fine < 0 ? -fine : fine) >> s.left;
    const uint32_t parent = child >> 1;
    const uint32_t symbol = parent ? child & 1 : child == 0 ? 0 : fine < 0 ? 2 : 1;
    return KvlCoded{s.tables[static_cast<uint64_t>(table + (parent != 0)) * KVL_SYMBOLS + symbol], 0, false};
}

// Backwards, from the last symbol to the first and from the end of the rooms to their starts.
KVL_DEVICE KvlEncoded kvl_encode_stream(const KvlEncode& s) {
    const uint64_t total = static_cast<uint64_t>(s.row_count) * s.tokens;
    const uint32_t steps = s.refining ? 2 * KVL_CLASSES_PER_GAIN : KVL_CLASSES_PER_GAIN;
    const KvlEncoded no_room = {KVL_NO_ROOM, 0, 0};
    PerThread<uint32_t, KVL_WARP> states;
    PerThread<KvlCursor, KVL_WARP> cursors;
    PerThread<KvlCoded, KVL_WARP> coded;
    PerThread<bool, KVL_WARP> active, full, escaping;
    uint32_t at = s.data_room, escapes_at = s.escape_room;
    uint64_t start = total == 0 ? 0 : (total - 1) / s.lanes * s.lanes;
    KVL_EACH(lane, KVL_WARP) {
        states[lane] = KVL_STATE_LOW;
        cursors[lane].set(start + static_cast<uint64_t>(lane), s.tokens);
    }
    for (bool more = total > 0; more; more = start > 0, start -= more ? s.lanes : 0) {
        KVL_EACH(lane, KVL_WARP) {
            active[lane] = static_cast<uint32_t>(lane) < s.lanes && start + static_cast<uint64_t>(lane) < total;
            full[lane] = escaping[lane] = false;
            if (active[lane]) {
                const KvlCursor cursor = cursors[lane];
                const KvlRow row = s.rows[cursor.row];
                const int32_t fine = s.symbols[static_cast<uint64_t>(row.place) * s.tokens + cursor.token];
                const uint32_t table = row.table + steps * s.gains[cursor.token];
                coded[lane] = s.refining ? kvl_refinement_symbol(s, fine, table) : kvl_base_symbol(s, fine, table);
                escaping[lane] = coded[lane].escapes;
                full[lane] = kvl_must_flush(states[lane], coded[lane].entry & 0xFFFFu);
            }
        }
        const uint32_t words = kvl_ballot(full), escapes = kvl_ballot(escaping);
        if (at < 2 * kvl_ones(words) || escapes_at < kvl_ones(escapes)) return no_room;
        at -= 2 * kvl_ones(words);
        escapes_at -= kvl_ones(escapes);
        KVL_EACH(lane, KVL_WARP) {
            if (escaping[lane]) s.escapes[escapes_at + kvl_ones(escapes & kvl_below(lane))] = coded[lane].escape;
            if (full[lane]) {
                uint8_t* word = s.data + at + 2 * kvl_ones(words & kvl_below(lane));
                *reinterpret_cast<uint16_t*>(word) = static_cast<uint16_t>(states[lane]);
                states[lane] >>= 16;
            }
            if (active[lane]) {
                const uint32_t entry = coded[lane].entry;
                states[lane] = kvl_encode_step(states[lane], entry & 0xFFFFu, entry >> 16);
            }
            if (start > 0) cursors[lane].backward(s.lanes, s.tokens);
        }
    }
    if (at < 4 * s.lanes) return no_room;
    at -= 4 * s.lanes;
    KVL_EACH(lane, KVL_WARP) {
        for (int i = 0; i < 4 && static_cast<uint32_t>(lane) < s.lanes; i++)
            s.data[at + 4 * lane + i] = static_cast<uint8_t>(states[lane] >> (8 * i));
    }
    return KvlEncoded{KVL_OK, s.data_room - at, s.escape_room - escapes_at};
}

KVL_DEVICE void kvl_encode_body(const KvlEncode& s, uint32_t) {
    const KvlEncoded encoded = kvl_encode_stream(s);
    KVL_EACH(lane, 1) { *s.encoded = encoded; }
}
