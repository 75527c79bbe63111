// Parts without a basis to tensors: symbols joined and scaled row by row, pairs of rows rotated, and a head's rows turned
// to tokens. A head's rows of a tile of tokens stay in the second cache throughout.
#include "direct.h"

#include <algorithm>
#include <cstring>

#include "coder.h"
#include "rounding.h"
#if KVL_X86
#include <emmintrin.h>
#endif

namespace {

enum { SYMBOL_ZERO = 128, LINE = 64, STREAM_BYTES_MIN = 4 * LINE };

inline void prefetch([[maybe_unused]] const void* place) {
#if defined(__GNUC__)
    __builtin_prefetch(place);
#endif
}

// A copy that leaves the caches as they are: whole lines go to memory without being read from there first. Others may
// look only after `written_out`.
void write_out(uint8_t* to, const uint8_t* from, uint64_t bytes) {
#if KVL_X86
    const uint64_t before = (LINE - reinterpret_cast<uintptr_t>(to) % LINE) % LINE;
    if (bytes >= STREAM_BYTES_MIN) {
        std::memcpy(to, from, before);
        to += before, from += before, bytes -= before;
        for (; bytes >= LINE; to += LINE, from += LINE, bytes -= LINE) {
            const __m128i* line = reinterpret_cast<const __m128i*>(from);
            __m128i* place = reinterpret_cast<__m128i*>(to);
            const __m128i a = _mm_loadu_si128(line), b = _mm_loadu_si128(line + 1);
            const __m128i c = _mm_loadu_si128(line + 2), d = _mm_loadu_si128(line + 3);
            _mm_stream_si128(place, a), _mm_stream_si128(place + 1, b);
            _mm_stream_si128(place + 2, c), _mm_stream_si128(place + 3, d);
        }
    }
#endif
    std::memcpy(to, from, bytes);
}

void written_out() {
#if KVL_X86
    _mm_sfence();
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
    return [](const Row* rows, uint32_t count, uint32_t levels, bool halved, const float* factors, uint32_t first,
              uint32_t tokens, float* out) {
        for (uint32_t row = 0; row < count; row++)
            take_row_plainly(rows[row], levels, halved, factors, first, tokens, out + row * TILE);
    };
}

// Room for `count` numbers that starts where a line does: a vector of 64 bytes across two lines takes twice the time.
template <class Number>
Number* line_aligned(std::vector<Number>& room, size_t count) {
    if (room.size() < count + LINE / sizeof(Number)) room.resize(count + LINE / sizeof(Number));
    const uintptr_t at = reinterpret_cast<uintptr_t>(room.data());
    return room.data() + (LINE - at % LINE) % LINE / sizeof(Number);
}

uint64_t padded(uint64_t count) { return (count + TURN - 1) / TURN * TURN; }

}  // namespace

void take_row_plainly(const Row& row, uint32_t levels, bool halved, const float* factors, uint32_t first,
                      uint32_t tokens, float* out) {
    for (uint32_t t = 0; t < tokens; t++) {
        int32_t number = row.symbols[0][first + t] - SYMBOL_ZERO;
        for (uint32_t level = 1; level < levels; level++) number = joined(number, row.symbols[level][first + t]);
        out[t] = static_cast<float>(reconstructed(number, halved)) * (factors[first + t] * row.scale) + row.mean;
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
    take_rows_ = row_kernel(job.path);
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
    cosines_ = line_aligned(cosine_room_, pairs * angle_stride_);
    sines_ = line_aligned(sine_room_, pairs * angle_stride_);
    const bool whole = tokens % TURN == 0 && pairs % TURN == 0;
    for (const auto& [from, to] : {std::pair(tensor.cosines, cosines_), std::pair(tensor.sines, sines_)}) {
        uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
        const int64_t stride = static_cast<int64_t>(sizeof(float) * angle_stride_);
        if (whole)
            turn_(from, pairs, tokens, pairs, bytes, stride, ELEMENT_FLOAT32);
        else
            turn_plainly(from, pairs, 0, tokens, pairs, bytes, stride, ELEMENT_FLOAT32);
    }
    angles_of_ = tensor.cosines;
}

// The rows of the head whose first channel is `channel`.
void Direct::describe_head(const Tensor& tensor, uint32_t channel) {
    rows_.resize(tensor.dim), coming_.resize(tensor.dim);
    const size_t tile = static_cast<size_t>(tensor.dim) * TILE;
    numbers_ = line_aligned(number_room_, tile), turned_ = line_aligned(turned_room_, sizeof(float) * tile);
    runs_.clear();
    const uint64_t tokens = job_->tokens;
    for (uint32_t d = 0; d < tensor.dim; d++) {
        const uint32_t index = owners_[channel + d];
        const Part& part = job_->parts[index];
        const uint32_t row = channel + d - part.start;
        for (uint32_t level = 0; level < part.levels; level++) {
            const uint8_t* idle = level ? zeros_.data() : zero_symbols_.data();
            rows_[d].symbols[level] = row < part.rows[level] ? part.symbols[level] + row * tokens : idle;
        }
        rows_[d].scale = part.scale[row];
        rows_[d].mean = part.mean[row], rows_[d].first_mean = part.first_mean[row];
        if (runs_.empty() || runs_.back().part != index) runs_.push_back({index, d, 0, false});
        Run& run = runs_.back();
        run.count++;
        const std::vector<Escaped>& escapes = escapes_[index];
        coming_[d] = {escapes.data(), escapes.data()};
        if (part.escape_count == 0) continue;
        const auto before = [](const Escaped& escaped, uint32_t bound) { return escaped.row < bound; };
        const Escaped* end = escapes.data() + escapes.size();
        const Escaped* first = std::lower_bound(escapes.data(), end, row, before);
        coming_[d] = {first, std::lower_bound(first, end, row + 1, before)};
        run.escaped = run.escaped || coming_[d].next != coming_[d].end;
    }
}

// What no kernel writes right: escapes, and the first token where it has means of its own.
void Direct::put_right(const Run& run, uint32_t token, uint32_t tokens) {
    const Part& part = job_->parts[run.part];
    const bool begins = token == 0 && part.first_mean != part.mean;
    if (!begins && !run.escaped) return;
    for (uint32_t d = run.first; d < run.first + run.count; d++) {
        const Row& row = rows_[d];
        const auto write = [&](uint32_t at, int32_t number) {
            const float mean = at == 0 ? row.first_mean : row.mean;
            numbers_[d * TILE + at - token] = static_cast<float>(number) * (part.factors[at] * row.scale) + mean;
        };
        if (begins) {
            int32_t number = row.symbols[0][0] - SYMBOL_ZERO;
            for (uint32_t level = 1; level < part.levels; level++) number = joined(number, row.symbols[level][0]);
            write(0, reconstructed(number, part.left));
        }
        for (Coming& at = coming_[d]; at.next != at.end && at.next->token < token + tokens; at.next++)
            write(at.next->token, at.next->number);
    }
}

// What the next head is made of, most often, has left the near caches: called before it is needed, it comes meanwhile.
void Direct::call(const Tensor& tensor, uint32_t token) const {
    for (const Run& run : runs_)
        for (uint32_t d = run.first; d < run.first + run.count; d++)
            for (uint32_t level = 0; level < job_->parts[run.part].levels; level++)
                prefetch(rows_[d].symbols[level] + static_cast<uint64_t>(tensor.dim) * job_->tokens + token);
}

void Direct::write_tile(const Tensor& tensor, uint32_t token, uint32_t tokens, uint8_t* to) {
    const uint64_t bytes = (tensor.element == ELEMENT_FLOAT32 ? 4ull : 2ull) * tensor.dim;
    call(tensor, token);
    for (const Run& run : runs_) {
        const Part& part = job_->parts[run.part];
        take_rows_(rows_.data() + run.first, run.count, part.levels, part.left > 0, part.factors, token, tokens,
                   numbers_ + run.first * TILE);
        put_right(run, token, tokens);
    }
    for (uint32_t i = 0; i < tensor.pairs; i++) {
        const uint32_t real = tensor.first_dim + (tensor.interleaved ? 2 * i : i);
        const uint32_t imaginary = real + (tensor.interleaved ? 1 : tensor.pairs);
        rotate_rows(numbers_ + real * TILE, numbers_ + imaginary * TILE,
                    cosines_ + i * angle_stride_ + token, sines_ + i * angle_stride_ + token, tokens);
    }
    // Not straight to the tensor: pieces of many rows, and not on the borders of lines, take twice the time.
    turn_(numbers_, TILE, tensor.dim, tokens, turned_, static_cast<int64_t>(bytes), tensor.element);
    if (tensor.token_stride == static_cast<int64_t>(bytes)) return write_out(to, turned_, tokens * bytes);
    for (uint32_t t = 0; t < tokens; t++) write_out(to + t * tensor.token_stride, turned_ + t * bytes, bytes);
}

void Direct::write(const Tensor& tensor) {
    if (tensor.pairs) take_angles(tensor);
    for (uint32_t head = 0; head < tensor.heads; head++) {
        describe_head(tensor, tensor.start + head * tensor.dim);
        uint8_t* to = tensor.data + head * tensor.head_stride;
        for (uint32_t token = 0; token < job_->tokens; token += TILE)
            write_tile(tensor, token, std::min<uint32_t>(TILE, job_->tokens - token), to + token * tensor.token_stride);
    }
    written_out();
}
