// The C++ execution of the codec's inner loops: entropy coder, dequantisation, inverse transform, and the bit-plane
// merge of the exact level.
//
// Plain C functions over plain buffers, called through ctypes (which lets go of the GIL). A call takes an array of
// jobs and spreads them over threads; jobs share nothing. Every read is bounded by the lengths in the job: a stream
// of hostile bytes ends in a status, never outside its buffers. AVX-512 is chosen at run time where the CPU has it.

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "rans.h"

#if defined(__x86_64__) && defined(__GNUC__)
// GCC 12 warns of its own intrinsics headers (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
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
    const uint8_t* contexts;    // [symbols] added to the run's table, or null
    uint8_t* symbols;           // decoder writes, encoder reads
    uint64_t symbol_count;
    uint32_t runs;
    uint32_t lanes;
    uint32_t table_count;
    int32_t status;
};

// Mirrors `_Merge` in codec/entropy/native.py.
struct Merge {
    const uint8_t* coded;     // [values] the entropy-coded byte of each value
    const uint8_t* middle;    // [values] sign and upper mantissa, or the whole low byte
    const uint8_t* low;       // [values * low_bytes]
    uint8_t* out;             // rows of row_values values, row_stride bytes apart
    uint64_t rows;
    uint64_t row_values;
    uint64_t row_stride;
    uint32_t form;            // 0: fp16, 1: bf16, 2: fp32
    uint32_t reserved;
};

// Mirrors `_Dequantise` in codec/entropy/native.py.
struct Dequantise {
    const uint8_t* base;        // [count] 128 + base symbol, 0 for an escape
    const uint8_t* refinement;  // [count] 1 + refinement, or null for the coarse level
    float* out;                 // [count] fine symbols; an escape comes out as if its base symbol were 0
    uint64_t count;
    uint64_t escapes;           // how many there were
};

// Mirrors `_Inverse` in codec/entropy/native.py.
struct Inverse {
    const float* coefficients;  // [blocks * width][tokens]
    const float* synthesis;     // [blocks][width][width], rows are basis vectors times the step
    const float* mean;          // [blocks * width]
    float* out;                 // [tokens][blocks * width]
    uint64_t tokens;
    uint32_t blocks;
    uint32_t width;
};

namespace {

uint32_t load_u16(const uint8_t* p) { return static_cast<uint32_t>(p[0]) | (static_cast<uint32_t>(p[1]) << 8); }

uint32_t load_u32(const uint8_t* p) { return load_u16(p) | (load_u16(p + 2) << 16); }

void store_u32(uint8_t* p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = static_cast<uint8_t>(v >> (8 * i));
}

bool job_is_sound(const Stream& s) {
    if (s.lanes == 0 || s.lanes > KVL_LANES_MAX) return false;
    uint64_t total = 0;
    for (uint32_t r = 0; r < s.runs; r++) {
        if (s.run_tables[r] + (s.contexts ? 1u : 0u) >= s.table_count) return false;
        total += s.run_lengths[r];
    }
    return total == s.symbol_count;
}

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

Status decode_group(const Stream& s, RunCursor& cursor, uint32_t* states, uint64_t start, uint32_t count, Reader& in) {
    for (uint32_t lane = 0; lane < count; lane++) {
        uint32_t table = cursor.table() + (s.contexts ? (s.contexts[start + lane] & 1u) : 0u);
        uint32_t slot = s.tables[static_cast<uint64_t>(table) * KVL_SLOTS + (states[lane] & (KVL_SLOTS - 1))];
        s.symbols[start + lane] = static_cast<uint8_t>(kvl_slot_symbol(slot));
        uint32_t state = kvl_decode_step(states[lane], slot);
        if (state < KVL_STATE_LOW) {
            if (in.end - in.at < 2) return TRUNCATED;
            state = kvl_refill(state, load_u16(in.at));
            in.at += 2;
        }
        states[lane] = state;
        cursor.advance(1);
    }
    return OK;
}

#if KVL_X86
#define KVL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

// Whole groups of 16 or 32 lanes, as long as a full vector of words can be read. Returns the symbols decoded.
template <int VECTORS>
KVL_AVX512 uint64_t decode_avx512(const Stream& s, RunCursor& cursor, uint32_t* states, Reader& in) {
    constexpr uint32_t GROUP = 16 * VECTORS;
    const __m512i slot_mask = _mm512_set1_epi32(KVL_SLOTS - 1);
    const __m512i twelve_bits = _mm512_set1_epi32(0xFFF);
    const __m512i state_low = _mm512_set1_epi32(KVL_STATE_LOW);
    __m512i x[VECTORS];
    for (int v = 0; v < VECTORS; v++) x[v] = _mm512_loadu_si512(states + 16 * v);
    uint64_t done = 0;
    while (s.symbol_count - done >= GROUP && in.end - in.at >= 2 * static_cast<int64_t>(GROUP)) {
        alignas(64) uint32_t bases[GROUP];
        const bool one_run = cursor.left >= GROUP;
        if (!one_run) {
            for (uint32_t lane = 0; lane < GROUP; lane++) {
                bases[lane] = cursor.table() * KVL_SLOTS;
                cursor.advance(1);
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            __m512i base = one_run ? _mm512_set1_epi32(static_cast<int>(cursor.table() * KVL_SLOTS))
                                   : _mm512_load_si512(bases + 16 * v);
            if (s.contexts) {
                __m128i context = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s.contexts + done + 16 * v));
                __m512i wide = _mm512_and_si512(_mm512_cvtepu8_epi32(context), _mm512_set1_epi32(1));
                base = _mm512_add_epi32(base, _mm512_slli_epi32(wide, KVL_PROBABILITY_BITS));
            }
            __m512i index = _mm512_add_epi32(base, _mm512_and_si512(x[v], slot_mask));
            __m512i slot = _mm512_i32gather_epi32(index, s.tables, 4);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(s.symbols + done + 16 * v), _mm512_cvtepi32_epi8(slot));
            __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(slot, 8), twelve_bits);
            __m512i next = _mm512_add_epi32(
                _mm512_mullo_epi32(frequency, _mm512_srli_epi32(x[v], KVL_PROBABILITY_BITS)),
                _mm512_srli_epi32(slot, 20));
            __mmask16 low = _mm512_cmplt_epu32_mask(next, state_low);
            __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in.at)));
            __m512i refilled = _mm512_or_si512(_mm512_slli_epi32(next, 16), _mm512_maskz_expand_epi32(low, words));
            x[v] = _mm512_mask_mov_epi32(next, low, refilled);
            in.at += 2 * __builtin_popcount(low);
        }
        if (one_run) cursor.advance(GROUP);
        done += GROUP;
    }
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_si512(states + 16 * v, x[v]);
    return done;
}

bool has_avx512() {
    static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return found;
}
#else
bool has_avx512() { return false; }
#endif

Status decode(const Stream& s, bool vectors) {
    if (!job_is_sound(s)) return BAD_JOB;
    if (s.data_bytes < 4ull * s.lanes) return TRUNCATED;
    uint32_t states[KVL_LANES_MAX];
    for (uint32_t lane = 0; lane < s.lanes; lane++) states[lane] = load_u32(s.data + 4 * lane);
    Reader in{s.data + 4 * s.lanes, s.data + s.data_bytes};
    RunCursor cursor(s);
    uint64_t done = 0;
#if KVL_X86
    if (vectors && s.lanes == 32) done = decode_avx512<2>(s, cursor, states, in);
    if (vectors && s.lanes == 16) done = decode_avx512<1>(s, cursor, states, in);
#endif
    while (done < s.symbol_count) {
        uint64_t left = s.symbol_count - done;
        uint32_t count = left < s.lanes ? static_cast<uint32_t>(left) : s.lanes;
        Status status = decode_group(s, cursor, states, done, count, in);
        if (status != OK) return status;
        done += count;
    }
    if (in.at != in.end) return TRAILING;
    for (uint32_t lane = 0; lane < s.lanes; lane++)
        if (states[lane] != KVL_STATE_LOW) return BAD_FINAL_STATE;
    return OK;
}

// Writes from the end of the buffer towards its start; `data_bytes` comes back as the bytes used, at the buffer's end.
Status encode(Stream& s) {
    if (!job_is_sound(s)) return BAD_JOB;
    uint8_t* begin = const_cast<uint8_t*>(s.data);
    uint8_t* at = begin + s.data_bytes;
    uint32_t states[KVL_LANES_MAX];
    for (uint32_t lane = 0; lane < s.lanes; lane++) states[lane] = KVL_STATE_LOW;
    uint64_t position = s.symbol_count;
    for (uint32_t r = s.runs; r-- > 0;) {
        for (uint64_t k = s.run_lengths[r]; k-- > 0;) {
            position--;
            uint32_t lane = static_cast<uint32_t>(position % s.lanes);
            uint32_t table = s.run_tables[r] + (s.contexts ? (s.contexts[position] & 1u) : 0u);
            uint32_t entry = s.tables[static_cast<uint64_t>(table) * KVL_SYMBOLS + s.symbols[position]];
            uint32_t frequency = entry & 0xFFFFu;
            if (frequency == 0) return BAD_JOB;
            if (kvl_must_flush(states[lane], frequency)) {
                if (at - begin < 2) return NO_ROOM;
                at -= 2;
                at[0] = static_cast<uint8_t>(states[lane]);
                at[1] = static_cast<uint8_t>(states[lane] >> 8);
                states[lane] >>= 16;
            }
            states[lane] = kvl_encode_step(states[lane], frequency, entry >> 16);
        }
    }
    if (static_cast<uint64_t>(at - begin) < 4ull * s.lanes) return NO_ROOM;
    at -= 4 * s.lanes;
    for (uint32_t lane = 0; lane < s.lanes; lane++) store_u32(at + 4 * lane, states[lane]);
    s.data_bytes = static_cast<uint64_t>(begin + s.data_bytes - at);
    return OK;
}

// Loops that the compiler turns into vectors by itself are compiled for several CPUs and chosen when loaded.
#if KVL_X86 && !defined(__clang__) && defined(__GLIBC__)
#define KVL_EVERY_CPU __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define KVL_EVERY_CPU
#endif

KVL_EVERY_CPU void merge(const Merge& m) {
    for (uint64_t row = 0; row < m.rows; row++) {
        const uint64_t base = row * m.row_values;
        uint8_t* out = m.out + row * m.row_stride;
        if (m.form == 2) {
            uint32_t* values = reinterpret_cast<uint32_t*>(out);
            for (uint64_t i = 0; i < m.row_values; i++) {
                uint32_t middle = m.middle[base + i];
                values[i] = ((middle & 0x80u) << 24) | (static_cast<uint32_t>(m.coded[base + i]) << 23) |
                            ((middle & 0x7Fu) << 16) | load_u16(m.low + 2 * (base + i));
            }
        } else {
            uint16_t* values = reinterpret_cast<uint16_t*>(out);
            for (uint64_t i = 0; i < m.row_values; i++) {
                uint32_t middle = m.middle[base + i], coded = m.coded[base + i];
                values[i] = static_cast<uint16_t>(m.form == 1 ? ((middle & 0x80u) << 8) | (coded << 7) | (middle & 0x7Fu)
                                                              : (coded << 8) | middle);
            }
        }
    }
}

KVL_EVERY_CPU void dequantise(Dequantise& d) {
    uint32_t escapes = 0;
    for (uint64_t i = 0; i < d.count; i++) {
        const int32_t symbol = d.base[i];
        escapes += symbol == 0;
        const int32_t base = symbol == 0 ? 0 : symbol - 128;
        const int32_t refinement = d.refinement ? static_cast<int32_t>(d.refinement[i]) - 1 : 0;
        d.out[i] = static_cast<float>(3 * base + (base < 0 ? -refinement : refinement));
    }
    d.escapes = escapes;
}

// out = mean + coefficients^T * synthesis, in tiles of TOKENS x CHANNELS sums that stay in registers.
KVL_EVERY_CPU void invert(const Inverse& job) {
    enum { TOKENS = 8, CHANNELS = 32 };
    const uint64_t row = static_cast<uint64_t>(job.blocks) * job.width;
    for (uint32_t block = 0; block < job.blocks; block++) {
        const float* basis = job.synthesis + static_cast<uint64_t>(block) * job.width * job.width;
        const float* source = job.coefficients + static_cast<uint64_t>(block) * job.width * job.tokens;
        for (uint32_t channel = 0; channel < job.width; channel += CHANNELS) {
            const uint32_t channels = job.width - channel < CHANNELS ? job.width - channel : CHANNELS;
            const uint64_t place = static_cast<uint64_t>(block) * job.width + channel;
            for (uint64_t token = 0; token < job.tokens; token += TOKENS) {
                const uint32_t tokens = job.tokens - token < TOKENS ? static_cast<uint32_t>(job.tokens - token) : TOKENS;
                float sums[TOKENS][CHANNELS] = {};
                if (tokens == TOKENS && channels == CHANNELS) {
                    for (uint32_t k = 0; k < job.width; k++) {
                        const float* values = source + k * job.tokens + token;
                        const float* vector = basis + static_cast<uint64_t>(k) * job.width + channel;
                        for (int t = 0; t < TOKENS; t++)
                            for (int c = 0; c < CHANNELS; c++) sums[t][c] += values[t] * vector[c];
                    }
                } else {
                    for (uint32_t k = 0; k < job.width; k++)
                        for (uint32_t t = 0; t < tokens; t++)
                            for (uint32_t c = 0; c < channels; c++)
                                sums[t][c] += source[k * job.tokens + token + t] *
                                              basis[static_cast<uint64_t>(k) * job.width + channel + c];
                }
                for (uint32_t t = 0; t < tokens; t++)
                    for (uint32_t c = 0; c < channels; c++)
                        job.out[(token + t) * row + place + c] = sums[t][c] + job.mean[place + c];
            }
        }
    }
}

// Runs `work(i)` for every i below `count` on up to `threads` threads; results must not depend on the order.
template <class Work>
void spread(uint32_t count, uint32_t threads, const Work& work) {
    std::atomic<uint32_t> next{0};
    auto drain = [&] {
        for (uint32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    };
    std::vector<std::thread> extra;
    for (uint32_t t = 1; t < threads && t < count; t++) {
        try {
            extra.emplace_back(drain);
        } catch (...) {
            break;  // no more threads to be had: the ones there are do the work
        }
    }
    drain();
    for (auto& thread : extra) thread.join();
}

}  // namespace

// Bit 0: AVX-512 in use.
KVL_EXPORT uint32_t kvl_features() { return has_avx512() ? 1u : 0u; }

KVL_EXPORT void kvl_decode(Stream* streams, uint32_t count, uint32_t threads, uint32_t allow_vectors) {
    const bool vectors = allow_vectors != 0 && has_avx512();
    spread(count, threads, [&](uint32_t i) { streams[i].status = decode(streams[i], vectors); });
}

KVL_EXPORT void kvl_encode(Stream* streams, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { streams[i].status = encode(streams[i]); });
}

KVL_EXPORT void kvl_merge(const Merge* merges, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { merge(merges[i]); });
}

KVL_EXPORT void kvl_dequantise(Dequantise* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { dequantise(jobs[i]); });
}

KVL_EXPORT void kvl_invert(const Inverse* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { invert(jobs[i]); });
}

// The library is reached through ctypes; the module exists so that the build system can treat it as an extension.
static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", "Entropy coder core; see native.py.", 0,
                                        nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module_definition); }
