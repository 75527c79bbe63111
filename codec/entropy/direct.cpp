// Parts without a basis to tensors: symbols joined and scaled row by row, pairs of rows rotated, and a head's rows turned
// to tokens. A head's rows of a tile of tokens stay in the second cache throughout.
#include "direct.h"

#include <algorithm>
#include <cstring>

#include "coder.h"
#include "rounding.h"

namespace {

enum { SYMBOL_ZERO = 128, AHEAD = 8 };

inline void prefetch([[maybe_unused]] const void* place) {
#if defined(__GNUC__)
    __builtin_prefetch(place);
#endif
}

constexpr uint32_t NOBODY = UINT32_MAX;

KVL_EVERY_CPU void rotate_rows(float* __restrict real, float* __restrict imaginary, const float* __restrict cosines,
                               const float* __restrict sines, uint32_t count) {
    for (uint32_t t = 0; t < count; t++) {
        const float x = real[t], y = imaginary[t];
        real[t] = x * cosines[t] - y * sines[t];
        imaginary[t] = y * cosines[t] + x * sines[t];
    }
}

TurnKernel turn_kernel([[maybe_unused]] uint32_t path) {
    TurnKernel kernel = nullptr;
#if KVL_X86
    if (path >= AVX512) kernel = turn_kernel_avx512();
    if (path >= AVX2 && !kernel) kernel = turn_kernel_avx2();
#endif
    if (kernel) return kernel;
    return [](const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to, int64_t token_stride,
              uint32_t element) { turn_plainly(rows, stride, 0, dim, tokens, to, token_stride, element); };
}

RowKernel row_kernel([[maybe_unused]] uint32_t path) {
    RowKernel kernel = nullptr;
#if KVL_X86
    if (path >= AVX512) kernel = row_kernel_avx512();
    if (path >= AVX2 && !kernel) kernel = row_kernel_avx2();
#endif
    if (kernel) return kernel;
    return [](const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors, uint32_t count,
              float scale, float mean, float* out) {
        take_row_plainly(symbols, levels, halved, factors, 0, count, scale, mean, out);
    };
}

uint64_t padded(uint64_t count) { return (count + TURN - 1) / TURN * TURN; }

}  // namespace

void take_row_plainly(const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors, uint32_t first,
                      uint32_t count, float scale, float mean, float* out) {
    for (uint32_t t = first; t < count; t++) {
        int32_t number = symbols[0][t] - SYMBOL_ZERO;
        for (uint32_t level = 1; level < levels; level++) number = joined(number, symbols[level][t]);
        out[t] = static_cast<float>(reconstructed(number, halved)) * (factors[t] * scale) + mean;
    }
}

void turn_plainly(const float* rows, uint64_t stride, uint32_t first, uint32_t dim, uint32_t tokens, uint8_t* to,
                  int64_t token_stride, uint32_t element) {
    for (uint32_t t = 0; t < tokens; t++, to += token_stride)
        for (uint32_t d = first; d < dim; d++) {
            const float number = rows[d * stride + t];
            if (element == ELEMENT_FLOAT32)
                reinterpret_cast<float*>(to)[d] = number;
            else
                reinterpret_cast<uint16_t*>(to)[d] =
                    element == ELEMENT_FLOAT16 ? float16_of(number) : bfloat16_of(number);
        }
}

void Direct::begin(const Restore& job) {
    job_ = &job;
    turn_ = turn_kernel(job.path);
    row_ = row_kernel(job.path);
    angles_of_ = nullptr;
    owners_.assign(job.width, NOBODY);
    escapes_.resize(std::max<size_t>(escapes_.size(), job.part_count));
    for (uint32_t i = 0; i < job.part_count; i++) {
        const Part& part = job.parts[i];
        if (part.basis) continue;
        std::fill_n(owners_.begin() + part.start, part.width, i);
        note_escapes(i);
    }
    zero_symbols_.assign(job.tokens, SYMBOL_ZERO);
    zeros_.assign(job.tokens, 0);
}

bool Direct::covers(const Tensor& tensor) const {
    const uint32_t* from = owners_.data() + tensor.start;
    const uint32_t* end = from + static_cast<uint64_t>(tensor.heads) * tensor.dim;
    return std::find(from, end, NOBODY) == end;
}

void Direct::note_escapes(uint32_t index) {
    const Part& part = job_->parts[index];
    std::vector<Escaped>& found = escapes_[index];
    found.clear();
    const uint64_t tokens = job_->tokens;
    const uint8_t* base = part.symbols[0];
    for (uint64_t at = 0; found.size() < part.escape_count; at++) {
        at = static_cast<uint64_t>(static_cast<const uint8_t*>(std::memchr(base + at, 0, part.rows[0] * tokens - at)) - base);
        int32_t number = part.escapes[found.size()];
        for (uint32_t level = 1; level < part.levels; level++) number = joined(number, part.symbols[level][at]);
        found.push_back({static_cast<uint32_t>(at / tokens), static_cast<uint32_t>(at % tokens),
                         reconstructed(number, part.left)});
    }
}

void Direct::take_angles(const Tensor& tensor) {
    if (angles_of_ == tensor.cosines) return;
    const uint32_t tokens = job_->tokens, pairs = tensor.pairs;
    angle_stride_ = padded(tokens);
    cosines_.resize(pairs * angle_stride_);
    sines_.resize(pairs * angle_stride_);
    const bool whole = tokens % TURN == 0 && pairs % TURN == 0;
    for (const auto& [from, to] : {std::pair(tensor.cosines, cosines_.data()), std::pair(tensor.sines, sines_.data())}) {
        uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
        const int64_t stride = static_cast<int64_t>(sizeof(float) * angle_stride_);
        if (whole)
            turn_(from, pairs, tokens, pairs, bytes, stride, ELEMENT_FLOAT32);
        else
            turn_plainly(from, pairs, 0, tokens, pairs, bytes, stride, ELEMENT_FLOAT32);
    }
    angles_of_ = tensor.cosines;
}

// One channel's numbers of `tokens` tokens from `token` on.
void Direct::take_row(uint32_t channel, uint32_t token, uint32_t tokens, float* out) {
    const uint32_t index = owners_[channel];
    const Part& part = job_->parts[index];
    const uint32_t row = channel - part.start;
    const uint8_t* symbols[LEVELS_MAX] = {};
    for (uint32_t level = 0; level < part.levels; level++) {
        const uint8_t* idle = level ? zeros_.data() : zero_symbols_.data();
        // Symbols of several megabytes have left the near caches; rows are read one after the other.
        if (row < part.rows[level])
            for (uint32_t at = 0; at < tokens; at += 64) prefetch(part.symbols[level] + static_cast<uint64_t>(row + AHEAD) * job_->tokens + token + at);
        symbols[level] = (row < part.rows[level] ? part.symbols[level] + static_cast<uint64_t>(row) * job_->tokens : idle) + token;
    }
    const float scale = part.scale[row];
    row_(symbols, part.levels, part.left > 0, part.factors + token, tokens, scale, part.mean[row], out);
    const auto number_at = [&](uint32_t t, int32_t number) {
        const float mean = t == 0 ? part.first_mean[row] : part.mean[row];
        out[t - token] = static_cast<float>(number) * (part.factors[t] * scale) + mean;
    };
    if (token == 0) {
        int32_t number = symbols[0][0] - SYMBOL_ZERO;
        for (uint32_t level = 1; level < part.levels; level++) number = joined(number, symbols[level][0]);
        number_at(0, reconstructed(number, part.left));
    }
    const std::vector<Escaped>& escapes = escapes_[index];
    if (part.escape_count == 0) return;
    auto at = std::lower_bound(escapes.begin(), escapes.end(), row, [](const Escaped& e, uint32_t r) { return e.row < r; });
    for (; at != escapes.end() && at->row == row; ++at)
        if (at->token - token < tokens) number_at(at->token, at->number);
}

void Direct::write_head(const Tensor& tensor, uint32_t channel, uint32_t token, uint32_t tokens, uint8_t* to) {
    for (uint32_t d = 0; d < tensor.dim; d++) take_row(channel + d, token, tokens, rows_.data() + d * TILE);
    for (uint32_t i = 0; i < tensor.pairs; i++) {
        const uint32_t real = tensor.first_dim + (tensor.interleaved ? 2 * i : i);
        const uint32_t imaginary = real + (tensor.interleaved ? 1 : tensor.pairs);
        rotate_rows(rows_.data() + real * TILE, rows_.data() + imaginary * TILE,
                    cosines_.data() + i * angle_stride_ + token, sines_.data() + i * angle_stride_ + token, tokens);
    }
    turn_(rows_.data(), TILE, tensor.dim, tokens, to, tensor.token_stride, tensor.element);
}

void Direct::write(const Tensor& tensor) {
    if (tensor.pairs) take_angles(tensor);
    rows_.resize(std::max<size_t>(rows_.size(), static_cast<size_t>(tensor.dim) * TILE));
    for (uint32_t head = 0; head < tensor.heads; head++)
        for (uint32_t token = 0; token < job_->tokens; token += TILE)
            write_head(tensor, tensor.start + head * tensor.dim, token, std::min<uint32_t>(TILE, job_->tokens - token),
                       tensor.data + head * tensor.head_stride + token * tensor.token_stride);
}
