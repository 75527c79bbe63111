// One lane of the interleaved rANS coder: the step that the C++ core and the CUDA kernels share.
//
// Range asymmetric numeral systems (Duda 2013; interleaving after Giesen 2014): 32-bit states, 16-bit
// renormalisation, 12-bit probabilities. A state rests in [2^16, 2^32), so one 16-bit word at most is read per symbol.
// codec/entropy/reference.py is the specification; every execution makes the same bytes.
#pragma once

#if !defined(__CUDACC_RTC__)  // which has no headers: codec/cuda/shim.h brings the types
#include <stdint.h>
#endif

#if defined(__CUDACC__)
#define KVL_INLINE __host__ __device__ __forceinline__
#else
#define KVL_INLINE static inline
#endif

enum {
    KVL_PROBABILITY_BITS = 12,
    KVL_SLOTS = 1 << KVL_PROBABILITY_BITS,
    KVL_SYMBOLS = 256,
    KVL_LANES_MAX = 32,
};
#define KVL_STATE_LOW 65536u

// A decoder slot packs what a slot number tells: symbol (8 bits), frequency (12), slot - cumulative (12).
KVL_INLINE uint32_t kvl_slot_symbol(uint32_t slot) { return slot & 0xFFu; }
KVL_INLINE uint32_t kvl_slot_frequency(uint32_t slot) { return (slot >> 8) & 0xFFFu; }
KVL_INLINE uint32_t kvl_slot_bias(uint32_t slot) { return slot >> 20; }

// Undo one symbol. The caller refills the state when it comes out below KVL_STATE_LOW.
KVL_INLINE uint32_t kvl_decode_step(uint32_t state, uint32_t slot) {
    return kvl_slot_frequency(slot) * (state >> KVL_PROBABILITY_BITS) + kvl_slot_bias(slot);
}

KVL_INLINE uint32_t kvl_refill(uint32_t state, uint32_t word) { return (state << 16) | word; }

// Whether a state must give up a word before a symbol of this frequency goes in.
KVL_INLINE bool kvl_must_flush(uint32_t state, uint32_t frequency) {
    return (state >> (32 - KVL_PROBABILITY_BITS)) >= frequency;
}

KVL_INLINE uint32_t kvl_encode_step(uint32_t state, uint32_t frequency, uint32_t cumulative) {
    return ((state / frequency) << KVL_PROBABILITY_BITS) + state % frequency + cumulative;
}

// The same without a division. `reciprocal` is 2^44 / frequency, rounded up. As state < 2^20 * frequency and
// frequency < 2^12, the product stays below 2^64 and its error below 2^44: the quotient is exact.
enum { KVL_RECIPROCAL_BITS = 44 };
KVL_INLINE uint32_t kvl_encode_step_by(uint32_t state, uint32_t frequency, uint32_t cumulative, uint64_t reciprocal) {
    uint32_t quotient = (uint32_t)((state * reciprocal) >> KVL_RECIPROCAL_BITS);
    return state + quotient * (KVL_SLOTS - frequency) + cumulative;
}
