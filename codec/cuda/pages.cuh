// Channels to and from the pages of an engine, turned to or back from their positions (`rotate_into` in codec/rope.py).
#pragma once

#include "streams.cuh"

enum KvlElement : uint32_t { KVL_FLOAT32 = 0, KVL_FLOAT16 = 1, KVL_BFLOAT16 = 2 };

// Mirrors `PAGES` in codec/cuda/jobs.py. One layer's keys or values of one chunk.
struct KvlPages {
    float* channels;            // [tokens][channel_stride], from this layer's and kind's first on
    uint8_t* pages;
    const int32_t* block_table; // the sequence's blocks
    const float* cos;           // [tokens][pairs]; null: nothing is rotated
    const float* sin;
    int32_t* status;
    uint64_t channel_stride;
    int64_t block_stride;       // in elements, as the next two
    int64_t slot_stride;
    int64_t head_stride;
    uint32_t element;
    uint32_t block_size;
    uint32_t first_slot;        // of the sequence
    uint32_t tokens;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t pairs;
    uint32_t first_dim;
    uint32_t interleaved;
    uint32_t unused;
};

enum { KVL_PAGE_THREADS = 256 };

// Half a step past the largest finite number must not become infinity.
KVL_DEVICE uint16_t kvl_to_half(float value) {
    const uint32_t bits = kvl_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
    if (magnitude >= 0x477FE000u) return static_cast<uint16_t>(sign | 0x7BFFu);
    if (magnitude < 0x38800000u)  // subnormal: next to 0.5 a float32 has just the same step
        return static_cast<uint16_t>(sign | (kvl_bits(kvl_add(kvl_float(magnitude), 0.5f)) - 0x3F000000u));
    return static_cast<uint16_t>(sign | (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
}

KVL_DEVICE float kvl_from_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 1023u;
    if (exponent == 31) return kvl_float(sign | 0x7F800000u | mantissa << 13);
    if (exponent == 0) return kvl_float(sign | kvl_bits(static_cast<float>(mantissa) * 5.9604644775390625e-8f));
    return kvl_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

KVL_DEVICE uint16_t kvl_to_bfloat(float value) {
    const uint32_t bits = kvl_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    if ((bits & 0x7FFFFFFFu) > 0x7F7F0000u) return static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7F7Fu);
    return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

KVL_DEVICE void kvl_store(uint8_t* pages, int64_t at, uint32_t element, float value) {
    if (element == KVL_FLOAT32)
        reinterpret_cast<float*>(pages)[at] = value;
    else
        reinterpret_cast<uint16_t*>(pages)[at] = element == KVL_FLOAT16 ? kvl_to_half(value) : kvl_to_bfloat(value);
}

KVL_DEVICE float kvl_load(const uint8_t* pages, int64_t at, uint32_t element) {
    if (element == KVL_FLOAT32) return reinterpret_cast<const float*>(pages)[at];
    const uint16_t half = reinterpret_cast<const uint16_t*>(pages)[at];
    return element == KVL_FLOAT16 ? kvl_from_half(half) : kvl_float(static_cast<uint32_t>(half) << 16);
}

// One number of a head, and the one that it is rotated with.
struct KvlPair {
    uint32_t partner;  // dimension; the number's own where it is not rotated
    uint32_t angle;
    bool second;
};

KVL_DEVICE KvlPair kvl_pair(const KvlPages& job, uint32_t dim) {
    const uint32_t within = dim - job.first_dim;
    if (!job.cos || dim < job.first_dim || within >= 2 * job.pairs) return KvlPair{dim, 0, false};
    const bool second = job.interleaved ? within & 1 : within >= job.pairs;
    const uint32_t apart = job.interleaved ? 1 : job.pairs;
    const uint32_t angle = job.interleaved ? within / 2 : within - (second ? job.pairs : 0);
    return KvlPair{second ? dim - apart : dim + apart, angle, second};
}

KVL_DEVICE float kvl_turn(const KvlPages& job, uint32_t token, KvlPair pair, float own, float partner) {
    const float cos = job.cos[static_cast<uint64_t>(token) * job.pairs + pair.angle];
    const float sin = job.sin[static_cast<uint64_t>(token) * job.pairs + pair.angle];
    return kvl_add(kvl_mul(own, cos), pair.second ? kvl_mul(partner, sin) : -kvl_mul(partner, sin));
}

// The place of a token's head in the pages.
KVL_DEVICE int64_t kvl_head_at(const KvlPages& job, uint32_t token, uint32_t head) {
    const uint32_t slot = job.first_slot + token;
    return job.block_table[slot / job.block_size] * job.block_stride + slot % job.block_size * job.slot_stride +
           head * job.head_stride;
}

template <class Work>
KVL_DEVICE void kvl_each_number(const KvlPages& job, uint32_t block, const Work& work) {
    KVL_EACH(thread, KVL_PAGE_THREADS) {
        const uint64_t number = static_cast<uint64_t>(block) * KVL_PAGE_THREADS + thread;
        const uint32_t width = job.heads * job.head_dim;
        if (number < static_cast<uint64_t>(job.tokens) * width) {
            const uint32_t token = static_cast<uint32_t>(number / width), channel = static_cast<uint32_t>(number % width);
            work(token, channel / job.head_dim, channel % job.head_dim);
        }
    }
}

KVL_DEVICE void kvl_scatter_body(const KvlPages& job, uint32_t block) {
    kvl_each_number(job, block, [&](uint32_t token, uint32_t head, uint32_t dim) {
        const float* from = job.channels + token * job.channel_stride + head * job.head_dim;
        const KvlPair pair = kvl_pair(job, dim);
        const float value = pair.partner == dim ? from[dim] : kvl_turn(job, token, pair, from[dim], from[pair.partner]);
        kvl_store(job.pages, kvl_head_at(job, token, head) + dim, job.element, value);
    });
}

KVL_DEVICE void kvl_gather_body(const KvlPages& job, uint32_t block) {
    kvl_each_number(job, block, [&](uint32_t token, uint32_t head, uint32_t dim) {
        const int64_t at = kvl_head_at(job, token, head);
        const KvlPair pair = kvl_pair(job, dim);
        const float own = kvl_load(job.pages, at + dim, job.element);
        if ((kvl_bits(own) & 0x7F800000u) == 0x7F800000u) *job.status = KVL_NOT_FINITE;
        const float value =
            pair.partner == dim ? own : kvl_turn(job, token, pair, own, kvl_load(job.pages, at + pair.partner, job.element));
        job.channels[token * job.channel_stride + head * job.head_dim + dim] = value;
    });
}
