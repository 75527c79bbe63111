// What the compiled core is asked to do: the job structs that codec/entropy/native.py mirrors, and what every source
// file of the core needs.
//
// Plain C functions over plain buffers, called through ctypes (which lets go of the GIL). A call takes an array of
// jobs and spreads them over threads; jobs share nothing. Every read is bounded by the lengths in the job.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define KVL_X86 1
#endif

#if defined(_WIN32)
#define KVL_EXPORT extern "C" __declspec(dllexport)
#else
#define KVL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum Status : int32_t {
    OK = 0,
    TRUNCATED = 1,
    TRAILING = 2,
    BAD_FINAL_STATE = 3,
    BAD_JOB = 4,
    NO_ROOM = 5,
    BAD_ESCAPES = 6
};

// Mirrors `_Stream` in codec/entropy/native.py.
struct Stream {
    const uint8_t* data;        // lane states, then 16-bit words, little-endian
    uint64_t data_bytes;
    const uint32_t* tables;     // decoder: [tables][4096] slots; encoder: [tables][256] frequency | cumulative << 16
    const uint32_t* run_tables; // [runs] which table a run of symbols uses
    const uint32_t* run_lengths;
    const uint8_t* contexts;    // [symbols] added to the run's table; or null
    const uint8_t* shifts;      // [period] added to it besides, over and over; or null. Only decoders read it
    const uint16_t* search;     // decoder: see `Form`; or null
    uint8_t* symbols;           // decoder writes, encoder reads
    uint8_t* opened;            // [symbols] decoder writes: 1 where the symbol is not `zero` or its context not 0; or null, or
                                // `contexts`
    uint32_t* places;           // [place_count] decoder writes: where the symbols 0 are, which must be as many; or null
    uint64_t symbol_count;
    uint32_t runs;
    uint32_t lanes;
    uint32_t table_count;
    uint32_t context_count;     // all contexts with their shifts are below it; 1 without
    uint32_t period;            // 0 without shifts
    uint32_t form;
    uint32_t zero;
    uint32_t place_count;
    int32_t status;
};

// What is known of a stream's tables, so that a decoder may find symbols by searching a few registers instead of
// reading slots from memory. `search` is [SEARCH_CLASSES][2][SEARCH_ENTRIES].
//
// FORM_BASE: table c, and any past the last class as that one, codes the symbols from SEARCH_FIRST on; `search[c]` holds where each one's slots start, and how
// many there are: 0 for the first and the last entry, which stand for all symbols beyond, too.
// FORM_REFINEMENT: run tables are 2 * c, contexts 0 or 1, shifts multiples of SHIFT_STEP up to 15 of them; for context
// b and shift SHIFT_STEP * g, `search[c][0][b + 2 * g]` is where the slots of symbol 1 start, `search[c][1]` of 2.
enum Form : uint32_t { FORM_ANY = 0, FORM_BASE = 1, FORM_REFINEMENT = 2 };
enum { SEARCH_CLASSES = 64, SEARCH_ENTRIES = 32, SEARCH_FIRST = 112, SHIFT_STEP = 6 };

// Loops that the compiler turns into vectors by itself are compiled for several CPUs and chosen when loaded.
#if KVL_X86 && !defined(__clang__) && defined(__GLIBC__)
#define KVL_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define KVL_EVERY_CPU
#endif

inline uint32_t load_u16(const uint8_t* p) { return static_cast<uint32_t>(p[0]) | (static_cast<uint32_t>(p[1]) << 8); }

inline uint32_t load_u32(const uint8_t* p) { return load_u16(p) | (load_u16(p + 2) << 16); }
