// The entropy coder: scalar code, and the choice of execution by what the CPU has.
//
// A stream of hostile bytes ends in a status, never outside its buffers.

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "coder.h"
#include "spread.h"

namespace {

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
    if (vectors && s.lanes == 32) done = decode_avx512_2(s, cursor, states, in);
    if (vectors && s.lanes == 16) done = decode_avx512_1(s, cursor, states, in);
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

// The library is reached through ctypes; the module exists so that the build system can treat it as an extension.
static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", "Entropy coder core; see native.py.", 0,
                                        nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module_definition); }
