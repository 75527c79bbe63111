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

enum Status : int32_t { OK = 0, TRUNCATED = 1, TRAILING = 2, BAD_FINAL_STATE = 3, BAD_JOB = 4, NO_ROOM = 5 };

// Mirrors `_Stream` in codec/entropy/native.py.
struct Stream {
    const uint8_t* data;        // lane states, then 16-bit words, little-endian
    uint64_t data_bytes;
    const uint32_t* tables;     // decoder: [tables][4096] slots; encoder: [tables][256] frequency | cumulative << 16
    const uint32_t* run_tables; // [runs] which table a run of symbols uses
    const uint32_t* run_lengths;
    const uint8_t* contexts;    // [symbols] below context_count, added to the run's table; or null
    uint8_t* symbols;           // decoder writes, encoder reads
    uint64_t symbol_count;
    uint32_t runs;
    uint32_t lanes;
    uint32_t table_count;
    uint32_t context_count;     // 1 without contexts
    int32_t status;
    uint32_t reserved;
};

// Loops that the compiler turns into vectors by itself are compiled for several CPUs and chosen when loaded.
#if KVL_X86 && !defined(__clang__) && defined(__GLIBC__)
#define KVL_EVERY_CPU __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define KVL_EVERY_CPU
#endif

inline uint32_t load_u16(const uint8_t* p) { return static_cast<uint32_t>(p[0]) | (static_cast<uint32_t>(p[1]) << 8); }

inline uint32_t load_u32(const uint8_t* p) { return load_u16(p) | (load_u16(p + 2) << 16); }
