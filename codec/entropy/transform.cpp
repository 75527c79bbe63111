// Dequantisation and the inverse transform of the lossy levels.
#include "jobs.h"
#include "spread.h"

namespace {

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

}  // namespace

KVL_EXPORT void kvl_dequantise(Dequantise* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { dequantise(jobs[i]); });
}

KVL_EXPORT void kvl_invert(const Inverse* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { invert(jobs[i]); });
}
