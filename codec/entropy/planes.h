// The jobs of the exact level; codec/entropy/native_planes.py mirrors the structs, codec/planes.py and
// codec/clusters.py say in NumPy what each does.
#pragma once

#include "jobs.h"

// How the bits of a value are shared out; mirrors `Form` in codec/planes.py.
enum PlaneForm : uint32_t { FORM_BYTE = 0, FORM_FLOAT16 = 1, FORM_BFLOAT16 = 2, FORM_FLOAT32 = 3 };

#if defined(__GNUC__)
#define KVL_BODY inline __attribute__((always_inline))
#else
#define KVL_BODY inline
#endif

enum {
    REST_BLOCK_VALUES = 64,  // values whose six-bit rests are packed together
    REST_BLOCK_BYTES = 48,
    WINDOW = 128,            // symbol pairs of a windowed form: escape, zero, and 126 consecutive magnitudes
    CLUSTERS_MAX = 16,
    SPAN_LOG2_MAX = 3,
    GROUPS = 256,
};

// Mirrors `_Join`.
struct Join {
    const uint8_t* symbols;  // [channels][tokens], rows in the order of `places`
    const uint32_t* places;  // [channels] which row holds a channel
    const uint8_t* rest;     // the stored bits of all values, [kv_heads][tokens][head_dim]
    uint8_t* out;
    int64_t head_stride;     // bytes, any sign
    int64_t token_stride;
    int64_t value_stride;
    uint32_t heads;
    uint32_t tokens;
    uint32_t head_dim;
    uint32_t form;
    uint32_t base;           // magnitude that window index 0 stands for
    int32_t status;
};

// Mirrors `_Split`.
struct Split {
    const uint8_t* values;   // head_dim consecutive values at a time
    uint8_t* symbols;        // [channels][tokens]
    uint8_t* rest;           // zeroed by the caller
    uint16_t* counts;        // [channels][256] how often each symbol occurs
    int64_t head_stride;
    int64_t token_stride;
    uint32_t heads;
    uint32_t tokens;
    uint32_t head_dim;
    uint32_t form;
    uint32_t base;           // comes back
    int32_t status;
};

// Mirrors `_Cluster`.
struct Cluster {
    const uint16_t* counts;   // [channels][256]
    const uint16_t* log2;     // [4096] logarithms of small counts, as codec/clusters.py rounds them
    const uint16_t* log2_mantissa;  // [256] of 1 + i / 256
    const uint8_t* symbols;   // [channels][tokens]
    uint8_t* sorted;          // the same rows, by table; comes back, as does all below
    uint8_t* packed;          // tables and who uses which, as written; room for PACKED_BYTES_MAX
    uint16_t* frequencies;    // [CLUSTERS_MAX][256]
    uint32_t* run_lengths;    // [CLUSTERS_MAX] symbols coded with each table
    uint32_t channels;
    uint32_t tokens;
    uint32_t span_log2;       // 2^span_log2 neighbouring magnitudes of one sign are a group
    uint32_t tables_used;
    uint32_t packed_bytes;
    int32_t status;
};

// Mirrors `_Unpack`.
struct Unpack {
    const uint8_t* data;      // tables and who uses which, and what follows
    uint64_t data_bytes;
    uint32_t* places;         // [channels] the row of each channel; comes back, as does all below
    uint32_t* run_lengths;    // [tables]
    uint16_t* frequencies;    // [tables][256]
    uint32_t* slots;          // [tables][4096]
    uint64_t bytes_used;
    uint32_t channels;
    uint32_t tokens;
    uint32_t tables;          // 1 to CLUSTERS_MAX
    uint32_t span_log2;
    int32_t status;
};

// Codes [256] of groups to frequencies [256] of symbols; false where no code is above 0.
bool frequencies_of_codes(const uint8_t* codes, uint32_t span_log2, uint16_t* frequencies);
