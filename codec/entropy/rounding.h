// float32 to the two-byte floats, and whole numbers of a level: what every execution does with one number.
#pragma once

#include <cstdint>
#include <cstring>

// The bits of the largest finite numbers. Half a step past them must not become infinity.
enum : uint32_t { FLOAT16_LARGEST = 0x477FE000u, BFLOAT16_LARGEST = 0x7F7F0000u, FLOAT32_INFINITE = 0x7F800000u };

// To the nearest, ties to even, no further than the largest finite number; NaN stays one.
inline uint16_t bfloat16_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    const uint32_t sign = bits & 0x80000000u, magnitude = bits & 0x7FFFFFFFu;
    const uint32_t kept = magnitude > BFLOAT16_LARGEST ? static_cast<uint32_t>(BFLOAT16_LARGEST) : magnitude;
    const uint32_t nearest = (kept + 0x7FFFu + (kept >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>(sign >> 16 | (magnitude > FLOAT32_INFINITE ? 0x7FC0u : nearest));
}

// As above. Below the normal numbers a float addition does the rounding.
inline uint16_t float16_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    const uint32_t kept = magnitude > FLOAT16_LARGEST ? static_cast<uint32_t>(FLOAT16_LARGEST) : magnitude;
    const uint32_t normal = (kept - 0x38000000u + 0xFFFu + (kept >> 13 & 1u)) >> 13;
    float small;
    std::memcpy(&small, &kept, 4);
    small += 0.5f;
    uint32_t small_bits;
    std::memcpy(&small_bits, &small, 4);
    const uint32_t finite = kept < 0x38800000u ? small_bits - 0x3F000000u : normal;
    return static_cast<uint16_t>(sign | (magnitude > FLOAT32_INFINITE ? 0x7E00u : finite));
}

// A symbol one level finer, as `join` in codec/quantise.py.
inline int32_t joined(int32_t coarse, int32_t refinement) {
    if (coarse == 0) return refinement == 2 ? -1 : refinement;
    return 2 * coarse + (coarse < 0 ? -refinement : refinement);
}

// What a symbol of a level stands for, as `reconstruct` there.
inline int32_t reconstructed(int32_t symbol, uint32_t left) {
    return left == 0 ? symbol : 4 * symbol + (symbol > 0) - (symbol < 0);
}
