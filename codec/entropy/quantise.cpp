// The quantiser: coefficients to the symbols of all levels; codec/quantise.py says the same in NumPy.
#include <cstring>
#include <vector>

#include "jobs.h"
#include "spread.h"

namespace {

enum { REFINEMENTS_MAX = 3, SYMBOL_ZERO = 128, SYMBOL_MAX = 127 };
constexpr float ROUNDING = 0.375f;
constexpr float FINE_LIMIT = 1073741823.0f;

// Mirrors `_Quantise` in codec/entropy/native_lossy.py.
struct Quantise {
    const float* coefficients;  // [width][tokens] in fine steps
    const float* factors;       // [tokens]
    uint8_t* levels[REFINEMENTS_MAX + 1];  // [width][tokens] symbols, coarse to fine
    int32_t* peaks;             // [width] the largest finest symbol's magnitude
    uint32_t width;
    uint32_t tokens;
    uint32_t refinements;
    int32_t status;             // BAD_JOB where a coefficient is too large
};

// Magnitudes of the finest symbols, negative ones inverted (-1 - magnitude), so that zero keeps a sign too. Floats that
// are not negative are ordered as their bits are, and NaN comes after all.
KVL_EVERY_CPU bool fine_row(const float* __restrict from, const float* __restrict factors, uint32_t tokens,
                            int32_t* __restrict fine, int32_t* peak) {
    int32_t limit;
    std::memcpy(&limit, &FINE_LIMIT, 4);
    int32_t most = 0;
    for (uint32_t t = 0; t < tokens; t++) {
        const float scaled = from[t] * factors[t];
        int32_t bits;
        std::memcpy(&bits, &scaled, 4);
        const int32_t magnitude_bits = bits & 0x7FFFFFFF;
        most = magnitude_bits > most ? magnitude_bits : most;
        const int32_t kept_bits = magnitude_bits < limit ? magnitude_bits : limit;
        float magnitude;
        std::memcpy(&magnitude, &kept_bits, 4);
        fine[t] = static_cast<int32_t>(magnitude + ROUNDING) ^ (bits >> 31);
    }
    float largest;
    std::memcpy(&largest, &most, 4);
    if (most >= limit) return false;
    *peak = static_cast<int32_t>(largest + ROUNDING);
    return true;
}

KVL_EVERY_CPU void base_row(const int32_t* __restrict fine, uint32_t tokens, uint32_t refinements, uint8_t* __restrict out) {
    for (uint32_t t = 0; t < tokens; t++) {
        const int32_t negative = fine[t] >> 31;
        const int32_t magnitude = (fine[t] ^ negative) >> refinements;
        const int32_t symbol = SYMBOL_ZERO + (magnitude ^ negative) - negative;
        out[t] = static_cast<uint8_t>(magnitude > SYMBOL_MAX ? 0 : symbol);
    }
}

KVL_EVERY_CPU void refinement_row(const int32_t* __restrict fine, uint32_t tokens, uint32_t left, uint8_t* __restrict out) {
    for (uint32_t t = 0; t < tokens; t++) {
        const int32_t negative = fine[t] >> 31;
        const int32_t child = (fine[t] ^ negative) >> left;
        out[t] = static_cast<uint8_t>(child == 1 ? 1 - negative : child & 1);
    }
}

Status quantise(const Quantise& job) {
    if (job.refinements > REFINEMENTS_MAX) return BAD_JOB;
    std::vector<int32_t> fine(job.tokens);
    for (uint32_t row = 0; row < job.width; row++) {
        const uint64_t at = static_cast<uint64_t>(row) * job.tokens;
        if (!fine_row(job.coefficients + at, job.factors, job.tokens, fine.data(), job.peaks + row)) return BAD_JOB;
        base_row(fine.data(), job.tokens, job.refinements, job.levels[0] + at);
        for (uint32_t level = 1; level <= job.refinements; level++)
            refinement_row(fine.data(), job.tokens, job.refinements - level, job.levels[level] + at);
    }
    return OK;
}

}  // namespace

KVL_EXPORT void kvl_quantise(Quantise* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = quantise(jobs[i]); });
}
