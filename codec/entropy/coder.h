// What the executions of the entropy coder share: where a stream is in its runs and in its words.
#pragma once

#include "jobs.h"
#include "rans.h"

// Walks the runs: which table the next symbol uses.
struct RunCursor {
    const Stream& s;
    uint32_t run = 0;
    uint64_t left = 0;

    explicit RunCursor(const Stream& stream) : s(stream), left(stream.runs ? stream.run_lengths[0] : 0) { skip(); }
    void skip() {
        while (left == 0 && run + 1 < s.runs) left = s.run_lengths[++run];
    }
    uint32_t table() const { return s.run_tables[run]; }
    void advance(uint64_t count) {
        left -= count;
        skip();
    }
};

struct Reader {
    const uint8_t* at;
    const uint8_t* end;
};

#if KVL_X86
// Decodes whole groups of 16 or 32 lanes while a full vector of words can be read. Returns the symbols decoded.
uint64_t decode_avx512_1(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in);
uint64_t decode_avx512_2(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in);
#endif
