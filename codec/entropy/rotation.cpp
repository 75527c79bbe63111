// KV tensors and channels that know no position: heads turned by their angles on the way; see codec/rope.py.
#include <cstring>

#include "rounding.h"
#include "spread.h"
#include "synthesis.h"

namespace {

KVL_EVERY_CPU void turn_halves(const float* __restrict from, const float* __restrict cosines,
                               const float* __restrict sines, uint32_t pairs, float* __restrict to) {
    // A loop for each half: one that writes to both is not turned into vectors.
    for (uint32_t i = 0; i < pairs; i++) to[i] = from[i] * cosines[i] - from[pairs + i] * sines[i];
    for (uint32_t i = 0; i < pairs; i++) to[pairs + i] = from[pairs + i] * cosines[i] + from[i] * sines[i];
}

KVL_EVERY_CPU void turn_neighbours(const float* __restrict from, const float* __restrict cosines,
                               const float* __restrict sines, uint32_t pairs, float* __restrict to) {
    for (uint32_t i = 0; i < pairs; i++) {
        const float real = from[2 * i], imaginary = from[2 * i + 1];
        to[2 * i] = real * cosines[i] - imaginary * sines[i];
        to[2 * i + 1] = imaginary * cosines[i] + real * sines[i];
    }
}

KVL_EVERY_CPU void to_bfloat16(const float* __restrict from, uint32_t count, uint16_t* __restrict to) {
    for (uint32_t i = 0; i < count; i++) to[i] = bfloat16_of(from[i]);
}

KVL_EVERY_CPU void to_float16(const float* __restrict from, uint32_t count, uint16_t* __restrict to) {
    for (uint32_t i = 0; i < count; i++) to[i] = float16_of(from[i]);
}

void turn_head(const Tensor& tensor, const float* from, uint64_t token, float* to) {
    const float* cosines = tensor.cosines + token * tensor.pairs;
    const float* sines = tensor.sines + token * tensor.pairs;
    const uint32_t first = tensor.first_dim, end = first + 2 * tensor.pairs;
    (tensor.interleaved ? turn_neighbours : turn_halves)(from + first, cosines, sines, tensor.pairs, to + first);
    if (first) std::memcpy(to, from, sizeof(float) * first);
    if (end < tensor.dim) std::memcpy(to + end, from + end, sizeof(float) * (tensor.dim - end));
}

// Whether all are finite numbers.
KVL_EVERY_CPU bool finite(const float* from, uint32_t count) {
    uint32_t bad = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, from + i, 4);
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    return bad == 0;
}

enum { HEAD_DIM_MAX = 4096 };

// Mirrors `_Gather` in native_lossy.py: the way in, of float32 tensors.
struct Gather {
    const Tensor* tensors;
    float* channels;         // [tokens][width]
    uint32_t tensor_count;
    uint32_t tokens;
    uint32_t width;
    int32_t status;          // BAD_JOB where a number is not finite
};

Status gather(const Gather& job) {
    for (uint32_t i = 0; i < job.tensor_count; i++) {
        const Tensor& tensor = job.tensors[i];
        if (!fits(tensor, job.width) || tensor.element != ELEMENT_FLOAT32) return BAD_JOB;
        for (uint32_t head = 0; head < tensor.heads; head++) {
            for (uint32_t token = 0; token < job.tokens; token++) {
                const float* from = reinterpret_cast<const float*>(tensor.data + head * tensor.head_stride +
                                                                   token * tensor.token_stride);
                float* to = job.channels + static_cast<uint64_t>(token) * job.width + tensor.start +
                            static_cast<uint64_t>(head) * tensor.dim;
                if (!finite(from, tensor.dim)) return BAD_JOB;
                if (tensor.pairs)
                    turn_head(tensor, from, token, to);
                else
                    std::memcpy(to, from, sizeof(float) * tensor.dim);
            }
        }
    }
    return OK;
}

}  // namespace

bool fits(const Tensor& tensor, uint32_t width) {
    const uint64_t channels = static_cast<uint64_t>(tensor.heads) * tensor.dim;
    const uint64_t turned = tensor.first_dim + 2ull * tensor.pairs;
    return tensor.dim <= HEAD_DIM_MAX && tensor.start <= width && channels <= width - tensor.start &&
           (tensor.pairs == 0 || turned <= tensor.dim) && tensor.element <= ELEMENT_BFLOAT16;
}

void scatter(const Tensor& tensor, const float* channels, uint64_t width, uint32_t tokens) {
    alignas(64) float turned[HEAD_DIM_MAX];
    for (uint32_t head = 0; head < tensor.heads; head++) {
        const float* column = channels + tensor.start + static_cast<uint64_t>(head) * tensor.dim;
        for (uint32_t token = 0; token < tokens; token++) {
            const float* from = column + token * width;
            uint8_t* to = tensor.data + head * tensor.head_stride + token * tensor.token_stride;
            if (tensor.element == ELEMENT_FLOAT32) {
                float* values = reinterpret_cast<float*>(to);
                if (tensor.pairs)
                    turn_head(tensor, from, token, values);
                else
                    std::memcpy(values, from, sizeof(float) * tensor.dim);
                continue;
            }
            if (tensor.pairs) {
                turn_head(tensor, from, token, turned);
                from = turned;
            }
            (tensor.element == ELEMENT_FLOAT16 ? to_float16 : to_bfloat16)(from, tensor.dim,
                                                                           reinterpret_cast<uint16_t*>(to));
        }
    }
}

KVL_EXPORT void kvl_gather(Gather* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = gather(jobs[i]); });
}
