// Reconstruction and synthesis: symbols of a part to its channels (`Part.inverse` and `_restore` in the reference).
//
// The product is of whole numbers and exact. A symbol is taken as digits of a byte: nearly always one is enough, and a
// block goes on to the next digit only where some symbol of its tile has one.
#pragma once

#include "shim.h"

// Mirrors `SYNTHESIS` in codec/cuda/jobs.py.
struct KvlSynthesis {
    const int32_t* symbols;      // [active][tokens]
    const uint32_t* basis;       // [width / 4 rounded up][width] four rows of a channel to a word; null: no transform
    const float* mean;           // [width] of all tokens; null: `offsets`
    const float* first_mean;     // [width] of the first token
    const int32_t* offsets;      // [width] means in steps of `scale * offset_scale`
    const float* scale;          // [width]
    const float* factors;        // [gains] what a unit of a token of each gain stands for
    const uint8_t* gains;        // [tokens]
    float* channels;             // [tokens][channel_stride]
    int64_t* sums;               // [tokens][width] the whole numbers, for tests; null: not wanted
    uint64_t channel_stride;
    uint32_t active;
    uint32_t tokens;
    uint32_t width;
    uint32_t halved;             // whether refinements were left out: a symbol stands for a point within its cell
    float offset_scale;          // 1 without `offsets`
    uint32_t unused;
};

enum { KVL_TILE = 64, KVL_TILE_THREADS = 256, KVL_TILE_WORDS = 8, KVL_OWN = 4, KVL_LOADS = 2 };

// What a symbol stands for (`reconstruct` in codec/quantise.py).
KVL_DEVICE int32_t kvl_reconstruct(int32_t symbol, uint32_t halved) {
    return halved ? 4 * symbol + (symbol > 0) - (symbol < 0) : symbol;
}

struct alignas(16) KvlFour {
    uint32_t word[KVL_OWN];
};

struct KvlSums {
    int32_t digit[KVL_OWN][KVL_OWN];
    int64_t wide[KVL_OWN][KVL_OWN];
};

KVL_DEVICE void kvl_multiply(const uint32_t (*left)[KVL_TILE], const uint32_t (*right)[KVL_TILE], int down, int across,
                             int32_t (*sums)[KVL_OWN]) {
    for (int w = 0; w < KVL_TILE_WORDS; w++) {
        const KvlFour a = *reinterpret_cast<const KvlFour*>(&left[w][down]);
        const KvlFour b = *reinterpret_cast<const KvlFour*>(&right[w][across]);
        for (int i = 0; i < KVL_OWN; i++)
            for (int j = 0; j < KVL_OWN; j++) sums[i][j] = kvl_dot4(a.word[i], b.word[j], sums[i][j]);
    }
}

KVL_DEVICE void kvl_write_channel(const KvlSynthesis& job, uint32_t token, uint32_t channel, int64_t sum) {
    if (token >= job.tokens || channel >= job.width) return;
    if (job.sums) job.sums[static_cast<uint64_t>(token) * job.width + channel] = sum;
    const float factor = kvl_mul(job.factors[job.gains[token]], job.offset_scale);
    const float own = kvl_mul(static_cast<float>(sum), kvl_mul(factor, job.scale[channel]));
    const float step = kvl_mul(job.scale[channel], job.offset_scale);
    const float mean = job.offsets ? kvl_mul(static_cast<float>(job.offsets[channel]), step)
                                   : (token == 0 ? job.first_mean : job.mean)[channel];
    job.channels[token * job.channel_stride + channel] = kvl_add(own, mean);
}

// A tile without transform: coefficients are channels.
KVL_DEVICE void kvl_plain_tile(const KvlSynthesis& job, uint32_t token_at, uint32_t channel_at) {
    KVL_EACH(thread, KVL_TILE_THREADS) {
        const uint32_t channel = channel_at + thread % KVL_TILE;
        for (uint32_t i = thread / KVL_TILE; i < KVL_TILE; i += KVL_TILE_THREADS / KVL_TILE) {
            const uint32_t token = token_at + i;
            const bool held = channel < job.active && token < job.tokens;
            const int32_t symbol = held ? job.symbols[static_cast<uint64_t>(channel) * job.tokens + token] : 0;
            kvl_write_channel(job, token, channel, kvl_reconstruct(symbol, job.halved));
        }
    }
}

KVL_DEVICE void kvl_synthesise_body(const KvlSynthesis& job, uint32_t tile) {
    const uint32_t down = (job.tokens + KVL_TILE - 1) / KVL_TILE, across = (job.width + KVL_TILE - 1) / KVL_TILE;
    if (tile >= down * across) return;
    const uint32_t token_at = tile % down * KVL_TILE, channel_at = tile / down * KVL_TILE;
    if (!job.basis) {
        kvl_plain_tile(job, token_at, channel_at);
        return;
    }
    KVL_SHARED alignas(16) uint32_t left[KVL_TILE_WORDS][KVL_TILE];
    KVL_SHARED alignas(16) uint32_t right[KVL_TILE_WORDS][KVL_TILE];
    PerThread<KvlSums, KVL_TILE_THREADS> sums;
    PerThread<int32_t[KVL_LOADS][4], KVL_TILE_THREADS> values;
    PerThread<bool, KVL_TILE_THREADS> more;
    KVL_EACH(thread, KVL_TILE_THREADS) { sums[thread] = KvlSums{}; }
    for (uint32_t word_at = 0; 4 * word_at < job.active; word_at += KVL_TILE_WORDS) {
        KVL_EACH(thread, KVL_TILE_THREADS) {
            const uint32_t column = thread % KVL_TILE, token = token_at + column, channel = channel_at + column;
            for (int load = 0; load < KVL_LOADS; load++) {
                const uint32_t w = thread / KVL_TILE + load * (KVL_TILE_THREADS / KVL_TILE), word = word_at + w;
                for (uint32_t k = 0; k < 4; k++) {
                    const uint32_t row = 4 * word + k;
                    const bool held = row < job.active && token < job.tokens;
                    const int32_t symbol = held ? job.symbols[static_cast<uint64_t>(row) * job.tokens + token] : 0;
                    values[thread][load][k] = kvl_reconstruct(symbol, job.halved);
                }
                const bool there = 4 * word < job.active && channel < job.width;
                right[w][column] = there ? job.basis[static_cast<uint64_t>(word) * job.width + channel] : 0;
            }
        }
        bool again = true;
        for (int shift = 0; again; shift += 8) {
            KVL_EACH(thread, KVL_TILE_THREADS) {
                bool rest = false;
                for (int load = 0; load < KVL_LOADS; load++) {
                    uint32_t packed = 0;
                    for (int k = 0; k < 4; k++) {
                        int32_t& value = values[thread][load][k];
                        const int32_t digit = static_cast<int8_t>(value & 0xFF);
                        packed |= static_cast<uint32_t>(digit & 0xFF) << (8 * k);
                        value = (value >> 8) + (digit < 0);
                        rest |= value != 0;
                    }
                    left[thread / KVL_TILE + load * (KVL_TILE_THREADS / KVL_TILE)][thread % KVL_TILE] = packed;
                }
                more[thread] = rest;
            }
            again = kvl_any(more);
            KVL_EACH(thread, KVL_TILE_THREADS) {
                const int a = thread / (KVL_TILE / KVL_OWN) * KVL_OWN, b = thread % (KVL_TILE / KVL_OWN) * KVL_OWN;
                if (shift == 0) {
                    kvl_multiply(left, right, a, b, sums[thread].digit);
                } else {
                    int32_t partial[KVL_OWN][KVL_OWN] = {};
                    kvl_multiply(left, right, a, b, partial);
                    for (int i = 0; i < KVL_OWN; i++)
                        for (int j = 0; j < KVL_OWN; j++)
                            sums[thread].wide[i][j] += static_cast<int64_t>(partial[i][j]) * (int64_t{1} << shift);
                }
            }
            kvl_barrier();
        }
    }
    KVL_EACH(thread, KVL_TILE_THREADS) {
        for (int i = 0; i < KVL_OWN; i++)
            for (int j = 0; j < KVL_OWN; j++)
                kvl_write_channel(job, token_at + thread / (KVL_TILE / KVL_OWN) * KVL_OWN + i,
                                  channel_at + thread % (KVL_TILE / KVL_OWN) * KVL_OWN + j,
                                  sums[thread].wide[i][j] + sums[thread].digit[i][j]);
    }
}
