// What the executions of the entropy coder share: where a stream stands in its runs and words, and their entry points.
//
// A kernel is given streams "in flight" that are of one lane count and share nothing else, and takes whole groups (one
// symbol of every lane) from each in turn: while the table look-ups of one stream are under way, the next one's start.
#pragma once

#include <cstring>
#include <vector>

#include "jobs.h"
#include "rans.h"

// Walks the runs forwards: which table the next symbol uses.
struct RunCursor {
    const Stream* stream = nullptr;
    uint32_t run = 0;
    uint64_t left = 0;  // symbols of this run still to come; 0 only after the last symbol

    void begin(const Stream& s) {
        stream = &s;
        run = 0;
        left = s.runs ? s.run_lengths[0] : 0;
        skip();
    }
    void skip() {
        while (left == 0 && run + 1 < stream->runs) left = stream->run_lengths[++run];
    }
    uint32_t table() const { return stream->run_tables[run]; }
    const uint16_t* search() const {
        return stream->search + static_cast<uint64_t>(table() >> (stream->form == FORM_REFINEMENT)) * 2 * SEARCH_ENTRIES;
    }
    const uint32_t* slots() const { return stream->tables + static_cast<uint64_t>(table()) * KVL_SLOTS; }
    void advance(uint64_t count) {
        left -= count;
        skip();
    }
    // The first slot of the tables of the next `count` symbols, counted from the first table's.
    void take_bases(uint32_t* bases, uint32_t count) {
        for (uint32_t i = 0; i < count; i++) {
            bases[i] = table() * KVL_SLOTS;
            advance(1);
        }
    }
};

// Walks the runs backwards: which table the symbol before uses.
struct ReverseCursor {
    const Stream* stream = nullptr;
    uint32_t run = 0;
    uint64_t left = 0;

    void begin(const Stream& s) {
        stream = &s;
        run = s.runs;
        left = 0;
        skip();
    }
    void skip() {
        while (left == 0 && run > 0) left = stream->run_lengths[--run];
    }
    uint32_t table() const { return stream->run_tables[run]; }
    void advance(uint64_t count) {
        left -= count;
        skip();
    }
    // The first entry of the tables of the `count` symbols before, counted from the first table's.
    void take_bases(uint32_t* bases, uint32_t count) {
        for (uint32_t i = count; i-- > 0;) {
            bases[i] = table() * KVL_SYMBOLS;
            advance(1);
        }
    }
};

// Walks a stream's shifts, which start again and again. Up to KVL_LANES_MAX of them may be read from `at` on, and so
// may they at `at + other`, divided by half a SHIFT_STEP.
struct ShiftCursor {
    const uint8_t* at = nullptr;  // null without shifts
    const uint8_t* end = nullptr;
    uint64_t turn = 0;            // a multiple of the period
    uint64_t other = 0;

    void begin(const Stream& s, std::vector<uint8_t>& room) {
        *this = ShiftCursor{};
        if (!s.shifts) return;
        turn = (KVL_LANES_MAX + s.period - 1) / s.period * s.period;
        other = turn + KVL_LANES_MAX;
        room.resize(2 * other);
        for (uint64_t i = 0; i < other; i++) {
            room[i] = s.shifts[i % s.period];
            room[other + i] = static_cast<uint8_t>(room[i] / (SHIFT_STEP / 2));
        }
        at = room.data();
        end = at + turn;
    }
    void advance(uint64_t count) {  // no more than a turn
        at += count;
        if (at >= end) at -= turn;
    }
};

// A stream on its way through the decoder. A kernel may take a group while `at <= limit`: from there it may read
// READ_AHEAD bytes. Near the end the stream goes on in `tail`, a padded copy of its last bytes, where `limit` is the
// true end, so that a stream that asks for more words than it has is found out after the group that did.
struct Flight {
    enum { READ_AHEAD = 2 * KVL_LANES_MAX };

    Stream* stream = nullptr;
    RunCursor runs;
    ShiftCursor shifts;
    const uint8_t* at = nullptr;
    const uint8_t* limit = nullptr;
    const uint8_t* end = nullptr;
    uint64_t done = 0;
    bool in_tail = false;
    alignas(64) uint32_t states[KVL_LANES_MAX];
    uint8_t tail[2 * READ_AHEAD];
    std::vector<uint8_t> shift_room;

    uint64_t groups_left() const { return (stream->symbol_count - done) / stream->lanes; }
    bool ready() const { return at <= limit && stream->symbol_count - done >= stream->lanes; }
    void enter_tail() {
        const size_t bytes = static_cast<size_t>(end - at);
        std::memcpy(tail, at, bytes);
        std::memset(tail + bytes, 0, sizeof(tail) - bytes);
        at = tail;
        limit = end = tail + bytes;
        in_tail = true;
    }
};

// A stream on its way through the encoder, which runs backwards: `at` is the first byte written.
struct Ascent {
    Stream* stream = nullptr;
    ReverseCursor runs;
    uint8_t* begin = nullptr;
    uint8_t* at = nullptr;
    uint64_t left = 0;  // symbols still to encode
    alignas(64) uint32_t states[KVL_LANES_MAX];
};

enum Path : uint32_t { SCALAR = 0, AVX2 = 1, AVX512 = 2, AVX512_VBMI2 = 3 };
enum { IN_FLIGHT_MAX = 5 };

// Decodes streams on this thread whose descriptions nobody has to check: all but their bytes is the caller's own doing.
void decode_sound(Stream* streams, uint32_t count, uint32_t path);

// Takes groups from every flight until one of them is not `ready()`.
using DecodeKernel = void (*)(Flight* const* flights);
// Takes whole groups of one stream as long as it safely can; what it leaves is for the code that goes symbol by symbol.
using EncodeKernel = void (*)(Ascent& ascent);

#if KVL_X86
// The kernel for a lane count and, in the decoder, a number of streams in flight from 1 on, all of one form; null where
// there is none.
DecodeKernel decode_kernel_avx2(uint32_t lanes, uint32_t in_flight, Form form);
DecodeKernel decode_kernel_avx512(uint32_t lanes, uint32_t in_flight, Form form);
DecodeKernel decode_kernel_vbmi2(uint32_t lanes, uint32_t in_flight, Form form);
// Whether the path has kernels for a form besides those for any.
bool searches_avx2(uint32_t lanes, Form form);
bool searches_avx512(uint32_t lanes, Form form);
EncodeKernel encode_kernel_avx2(uint32_t lanes);
EncodeKernel encode_kernel_avx512(uint32_t lanes);
#endif
