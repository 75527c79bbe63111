// The lossy levels' way back: the levels' symbols joined, the synthesis an exact product of integers, then scaled.
//
// A coefficient is cut into signed digits of eight bits. Nearly all have one; the others' higher digits are products of
// their own, added up in doubles. Symbols are mostly zero, so each tile of tokens lists the groups of coefficients
// where it has others, and the product goes over these alone. Any path makes the same sums.
#include "synthesis.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "coder.h"
#include "direct.h"
#include "rounding.h"
#include "spread.h"
#if KVL_X86
#include <emmintrin.h>
#endif

namespace {

enum { DIGIT_BITS = 8, DIGITS_MAX = 5, ROWS = 4, SCALAR_CHANNELS = 32 };
// So many groups of second digits, and all that a part may have of lowest ones, sum to less than 2^31.
enum { SECOND_GROUPS_MAX = 64 };

void multiply_scalar(const uint32_t* digits, const uint32_t* list, uint32_t count, const uint8_t* basis, const int32_t*,
                     int32_t* sums) {
    std::fill(sums, sums + TILE_TOKENS * SCALAR_CHANNELS, 0);
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = static_cast<uint64_t>(list[i]) * 4 * SCALAR_CHANNELS;
        const int8_t* rows = reinterpret_cast<const int8_t*>(basis) + at;
        for (uint32_t t = 0; t < TILE_TOKENS; t++) {
            const uint32_t four = digits[i * TILE_TOKENS + t];
            for (uint32_t k = 0; k < 4; k++) {
                const int32_t digit = static_cast<int8_t>(four >> (8 * k));
                if (digit == 0) continue;
                for (uint32_t c = 0; c < SCALAR_CHANNELS; c++)
                    sums[t * SCALAR_CHANNELS + c] += digit * rows[k * SCALAR_CHANNELS + c];
            }
        }
    }
}

// How `path` multiplies here; a CPU that lacks what a path's product needs takes the next lower one's.
Product product_of(uint32_t path) {
    Product product{};
#if KVL_X86
    if (path >= AVX512 && product_avx512(product)) return product;
    if (path >= AVX2 && product_avx2(product)) return product;
#endif
    (void)path;
    return {multiply_scalar, 4, SCALAR_CHANNELS, Product::PLAIN_BYTES};
}

// One digit of all coefficients of a part, of those groups where a tile of tokens has any but zero.
struct Digits {
    std::vector<uint32_t> words;   // [token tiles][room][TILE_TOKENS]
    std::vector<uint32_t> lists;   // [token tiles][room] of which groups
    std::vector<uint32_t> counts;  // [token tiles]
    std::vector<int32_t> excess;   // [tokens padded] the sum of a token's digits
    uint64_t room = 0;
    bool used = false;

    void begin(uint32_t groups, uint64_t tiles) {
        // Tiles are filled side by side: an odd number of cache lines keeps them from crowding each other out.
        room = (groups / 4 | 1u) * 4 + 4;
        if ((room / 4 & 1) == 0) room += 4;
        words.resize(tiles * room * TILE_TOKENS);
        lists.resize(tiles * room);
        counts.assign(tiles, 0);
        excess.assign(tiles * TILE_TOKENS, 0);
        used = true;
    }
    // A group's words `[tokens padded]`; groups come in order.
    void add(uint32_t group, const uint32_t* row) {
        const uint64_t tiles = counts.size();
        for (uint64_t tile = 0, first = 0; tile < tiles; tile++, first += room, row += TILE_TOKENS) {
            uint32_t any = 0;
            for (int t = 0; t < TILE_TOKENS; t++) any |= row[t];
            const uint64_t place = first + counts[tile];
            std::memcpy(words.data() + place * TILE_TOKENS, row, sizeof(uint32_t) * TILE_TOKENS);
            lists[place] = group;
            counts[tile] += any != 0;
        }
    }
};

// What a thread keeps between the parts of a block.
struct Scratch {
    std::vector<int32_t> rows;             // [ROWS][tokens padded]
    std::vector<uint32_t> row[DIGITS_MAX]; // [tokens padded] the words of a group
    Digits digits[DIGITS_MAX];
};

KVL_EVERY_CPU void open_row(const uint8_t* __restrict base, uint32_t tokens, int32_t* __restrict out) {
    for (uint32_t t = 0; t < tokens; t++) out[t] = static_cast<int32_t>(base[t]) - 128;
}

KVL_EVERY_CPU void join_row(const uint8_t* __restrict refinement, uint32_t tokens, int32_t* __restrict out) {
    for (uint32_t t = 0; t < tokens; t++) {
        const int32_t r = refinement[t], coarse = out[t];
        const int32_t opened = r == 2 ? -1 : r;
        const int32_t doubled = 2 * coarse + (coarse < 0 ? -r : r);
        out[t] = coarse == 0 ? opened : doubled;
    }
}

KVL_EVERY_CPU void reconstruct_row(uint32_t tokens, int32_t* out) {
    for (uint32_t t = 0; t < tokens; t++) out[t] = 4 * out[t] + (out[t] > 0) - (out[t] < 0);
}

// Puts right the symbols of a row whose base symbol escaped; returns how many did.
uint64_t place_escapes(const Part& part, uint32_t row, uint32_t tokens, const int32_t* escapes, int32_t* out) {
    const uint8_t* base = part.symbols[0] + static_cast<uint64_t>(row) * tokens;
    uint64_t found = 0;
    for (uint32_t t = 0; t < tokens; t++) {
        const void* hit = std::memchr(base + t, 0, tokens - t);
        if (!hit) break;
        t = static_cast<uint32_t>(static_cast<const uint8_t*>(hit) - base);
        int32_t symbol = escapes[found++];
        for (uint32_t level = 1; level < part.levels; level++)
            symbol = joined(symbol, part.symbols[level][static_cast<uint64_t>(row) * tokens + t]);
        out[t] = reconstructed(symbol, part.left);
    }
    return found;
}

// A coefficient's row as the level's units `[tokens]`. Returns the escapes used up.
uint64_t unfold_row(const Part& part, uint32_t row, uint32_t tokens, const int32_t* escapes, int32_t* out) {
    if (row < part.rows[0])
        open_row(part.symbols[0] + static_cast<uint64_t>(row) * tokens, tokens, out);
    else
        std::memset(out, 0, sizeof(int32_t) * tokens);
    for (uint32_t level = 1; level < part.levels; level++)
        if (row < part.rows[level]) join_row(part.symbols[level] + static_cast<uint64_t>(row) * tokens, tokens, out);
    if (part.left) reconstruct_row(tokens, out);
    if (part.escape_count == 0 || row >= part.rows[0]) return 0;
    return place_escapes(part, row, tokens, escapes, out);
}

// Lowest digits of GROUP rows to words, and added to `excess`; whether a number has more than one digit.
template <int GROUP>
KVL_EVERY_CPU bool pack_rows(const int32_t* __restrict rows, uint64_t stride, uint32_t* __restrict out,
                             int32_t* __restrict excess) {
    uint32_t beyond = 0;
    for (uint64_t t = 0; t < stride; t++) {
        uint32_t word = 0;
        int32_t sum = 0;
        for (int k = 0; k < GROUP; k++) {
            const int32_t number = rows[k * stride + t];
            beyond |= (static_cast<uint32_t>(number) + 128u) & ~255u;
            const int32_t digit = static_cast<int32_t>(static_cast<uint32_t>(number) << 24) >> 24;
            word |= (static_cast<uint32_t>(digit) & (GROUP == 4 ? 0xFFu : 0xFFFFu)) << (32 / GROUP * k);
            sum += digit;
        }
        out[t] = word;
        excess[t] += sum;
    }
    return beyond != 0;
}

// The digits after the lowest, of a group that has any.
void add_high(const int32_t* rows, uint64_t stride, uint32_t group, uint32_t g, uint32_t groups, Scratch& scratch) {
    bool any[DIGITS_MAX] = {};
    for (uint32_t k = 0; k < group; k++)
        for (uint64_t t = 0; t < stride; t++) {
            int32_t number = rows[k * stride + t];
            if (number == static_cast<int8_t>(number)) continue;  // nearly all
            for (uint32_t d = 0; number != 0; d++) {
                const int32_t digit = static_cast<int8_t>(static_cast<uint32_t>(number));
                number = (number >> DIGIT_BITS) + (digit < 0);
                if (d == 0 || digit == 0) continue;
                if (!any[d]) scratch.row[d].assign(stride, 0);
                if (!scratch.digits[d].used) scratch.digits[d].begin(groups, stride / TILE_TOKENS);
                any[d] = true;
                const uint32_t bits = static_cast<uint32_t>(digit) & (group == 4 ? 0xFFu : 0xFFFFu);
                scratch.row[d][t] |= bits << (32 / group * k);
                scratch.digits[d].excess[t] += digit;
            }
        }
    for (uint32_t d = 1; d < DIGITS_MAX; d++)
        if (any[d]) scratch.digits[d].add(g, scratch.row[d].data());
}

template <class Number>
KVL_EVERY_CPU void finish_token(const Number* __restrict sums, const float* __restrict scale,
                                const float* __restrict mean, float factor, uint32_t channels, float* __restrict out) {
    for (uint32_t c = 0; c < channels; c++) out[c] = static_cast<float>(sums[c]) * (factor * scale[c]) + mean[c];
}

template <class Number>
void finish(const Part& part, const Number* sums, uint32_t tile_channels, uint64_t token, uint32_t tokens,
            uint32_t channel, uint32_t channels, float* out, uint64_t width) {
    for (uint32_t t = 0; t < tokens; t++) {
        const float* mean = (token + t == 0 ? part.first_mean : part.mean) + channel;
        finish_token(sums + t * tile_channels, part.scale + channel, mean, part.factors[token + t], channels,
                     out + (token + t) * width + part.start + channel);
    }
}

KVL_EVERY_CPU void add_digits(const int32_t* __restrict sums, uint32_t count, double weight, double* __restrict wide) {
    for (uint32_t i = 0; i < count; i++) wide[i] += sums[i] * weight;
}

KVL_EVERY_CPU void add_second(const int32_t* __restrict second, uint32_t count, int32_t* __restrict sums) {
    for (uint32_t i = 0; i < count; i++) sums[i] += second[i] * (1 << DIGIT_BITS);
}

// Cuts the symbols of a part into digits.
void take_digits(const Part& part, const Product& product, uint32_t tokens, Scratch& scratch) {
    const uint64_t stride = (tokens + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    const uint32_t active = part.rows[part.levels - 1];
    const uint32_t groups = product.groups(active);
    scratch.rows.assign(ROWS * stride, 0);
    scratch.row[0].resize(stride);
    for (Digits& digits : scratch.digits) digits.used = false;
    Digits& lowest = scratch.digits[0];
    lowest.begin(groups, stride / TILE_TOKENS);
    const auto pack = product.group == 4 ? pack_rows<4> : pack_rows<2>;
    const int32_t* escapes = part.escapes;
    for (uint32_t g = 0; g < groups; g++) {
        for (uint32_t k = 0; k < product.group; k++) {
            const uint32_t row = g * product.group + k;
            int32_t* to = scratch.rows.data() + k * stride;
            if (row < active)
                escapes += unfold_row(part, row, tokens, escapes, to);
            else
                std::memset(to, 0, sizeof(int32_t) * stride);
        }
        const bool more = pack(scratch.rows.data(), stride, scratch.row[0].data(), lowest.excess.data());
        lowest.add(g, scratch.row[0].data());
        if (more) add_high(scratch.rows.data(), stride, product.group, g, groups, scratch);
    }
}

// The sums of a tile by all of its digits: `true` where they are in `wide` and not in `sums`.
bool multiply_tile(const Product& product, const Scratch& scratch, uint64_t tile, const uint8_t* basis, int32_t* sums,
                   double* wide) {
    const auto multiply = [&](uint32_t d, int32_t* to) {
        const Digits& digits = scratch.digits[d];
        const uint64_t first = tile * digits.room;
        product.kernel(digits.words.data() + first * TILE_TOKENS, digits.lists.data() + first, digits.counts[tile], basis,
                       digits.excess.data() + tile * TILE_TOKENS, to);
    };
    const auto has = [&](uint32_t d) { return scratch.digits[d].used && scratch.digits[d].counts[tile] != 0; };
    const uint32_t count = TILE_TOKENS * product.channels;
    bool large = has(1) && scratch.digits[1].counts[tile] > SECOND_GROUPS_MAX;
    for (uint32_t d = 2; d < DIGITS_MAX; d++) large = large || has(d);
    multiply(0, sums);
    if (!large && !has(1)) return false;
    alignas(64) int32_t higher[TILE_SUMS_MAX];
    if (!large) {
        multiply(1, higher);
        add_second(higher, count, sums);
        return false;
    }
    std::copy(sums, sums + count, wide);
    for (uint32_t d = 1; d < DIGITS_MAX; d++) {
        if (!has(d)) continue;
        multiply(d, higher);
        add_digits(higher, count, static_cast<double>(uint64_t{1} << (DIGIT_BITS * d)), wide);
    }
    return true;
}

// `done` is told, time and again, up to which channel of the block all are written.
template <class Done>
void synthesise(const Part& part, const Product& product, uint32_t tokens, Scratch& scratch, float* out,
                uint64_t width, const Done& done) {
    take_digits(part, product, tokens, scratch);
    alignas(64) int32_t sums[TILE_SUMS_MAX];
    alignas(64) double wide[TILE_SUMS_MAX];  // whole numbers below 2^53: exact
    const uint64_t tile_bytes = product.tile_bytes(part.width);
    for (uint32_t channel = 0; channel < part.width; channel += product.channels) {
        const uint8_t* basis = part.basis + channel / product.channels * tile_bytes;
        const uint32_t channels = std::min(product.channels, part.width - channel);
        for (uint32_t token = 0; token < tokens; token += TILE_TOKENS) {
            const uint32_t count = std::min<uint32_t>(TILE_TOKENS, tokens - token);
            if (multiply_tile(product, scratch, token / TILE_TOKENS, basis, sums, wide))
                finish(part, wide, product.channels, token, count, channel, channels, out, width);
            else
                finish(part, sums, product.channels, token, count, channel, channels, out, width);
        }
        done(part.start + channel + channels);
    }
}

KVL_EVERY_CPU void scale_row(const int32_t* __restrict numbers, const float* __restrict factors, uint32_t tokens,
                             float scale, float mean, float* __restrict out) {
    for (uint32_t t = 0; t < tokens; t++) out[t] = static_cast<float>(numbers[t]) * (factors[t] * scale) + mean;
}

// [4][tokens] to four neighbouring channels of all tokens.
void turn(const float* rows, uint32_t tokens, uint32_t count, float* out, uint64_t width) {
    uint32_t t = 0;
#if KVL_X86
    for (; count == 4 && t + 4 <= tokens; t += 4) {
        __m128 a = _mm_loadu_ps(rows + t), b = _mm_loadu_ps(rows + tokens + t);
        __m128 c = _mm_loadu_ps(rows + 2ull * tokens + t), d = _mm_loadu_ps(rows + 3ull * tokens + t);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(out + t * width, a);
        _mm_storeu_ps(out + (t + 1) * width, b);
        _mm_storeu_ps(out + (t + 2) * width, c);
        _mm_storeu_ps(out + (t + 3) * width, d);
    }
#endif
    for (; t < tokens; t++)
        for (uint32_t k = 0; k < count; k++) out[t * width + k] = rows[static_cast<uint64_t>(k) * tokens + t];
}

// A part without a basis: coefficients are channels.
void place_channels(const Part& part, uint32_t tokens, Scratch& scratch, float* out, uint64_t width) {
    scratch.rows.resize(tokens);
    std::vector<float> rows(static_cast<size_t>(ROWS) * tokens);
    const int32_t* escapes = part.escapes;
    for (uint32_t channel = 0; channel < part.width; channel += ROWS) {
        const uint32_t count = std::min<uint32_t>(ROWS, part.width - channel);
        for (uint32_t k = 0; k < count; k++) {
            const uint32_t row = channel + k;
            float* to = rows.data() + static_cast<uint64_t>(k) * tokens;
            escapes += unfold_row(part, row, tokens, escapes, scratch.rows.data());
            scale_row(scratch.rows.data(), part.factors, tokens, part.scale[row], part.mean[row], to);
            to[0] = static_cast<float>(scratch.rows[0]) * (part.factors[0] * part.scale[row]) + part.first_mean[row];
        }
        turn(rows.data(), tokens, count, out + part.start + channel, width);
    }
}

bool fits(const Part& part, uint32_t width, uint32_t tokens) {
    if (part.levels < 1 || part.levels > LEVELS_MAX || part.width == 0 || part.width > width ||
        part.start > width - part.width)
        return false;
    uint32_t before = 0;
    for (uint32_t level = 0; level < part.levels; before = part.rows[level++])
        if (part.rows[level] < before || part.rows[level] > part.width) return false;
    const uint8_t* at = part.symbols[0];
    const uint8_t* end = at + static_cast<uint64_t>(part.rows[0]) * tokens;
    uint64_t escapes = 0;
    for (; at < end && (at = static_cast<const uint8_t*>(std::memchr(at, 0, static_cast<size_t>(end - at)))); at++) escapes++;
    return escapes == part.escape_count;
}

}  // namespace

static uint64_t end_of(const Tensor& tensor) {
    return tensor.start + static_cast<uint64_t>(tensor.heads) * tensor.dim;
}

Status restore(const Restore& job) {
    for (uint32_t i = 0; i < job.part_count; i++)
        if (!fits(job.parts[i], job.width, job.tokens)) return BAD_JOB;
    for (uint32_t i = 0; i < job.tensor_count; i++)
        if (!fits(job.tensors[i], job.width)) return BAD_JOB;
    if (job.tokens == 0) return BAD_JOB;
    thread_local Scratch scratch;
    thread_local Direct direct;
    thread_local std::vector<float> room;
    direct.begin(job);
    const auto needs_channels = [&](const Tensor& tensor) { return !direct.covers(tensor); };
    const bool any = job.channels || std::any_of(job.tensors, job.tensors + job.tensor_count, needs_channels);
    float* channels = job.channels;
    if (any && !channels) {
        room.resize(static_cast<size_t>(job.tokens) * job.width);
        channels = room.data();
    }
    const Product product = product_of(job.path);
    uint32_t next = 0;  // tensor to write
    // As soon as its channels are there: they are still in a near cache.
    const auto write_up_to = [&](uint64_t channel) {
        for (; next < job.tensor_count && end_of(job.tensors[next]) <= channel; next++) {
            const Tensor& tensor = job.tensors[next];
            if (direct.covers(tensor))
                direct.write(tensor);
            else
                scatter(tensor, channels, job.width, job.tokens);
        }
    };
    for (uint32_t i = 0; any && i < job.part_count; i++) {
        const Part& part = job.parts[i];
        if (part.basis)
            synthesise(part, product, job.tokens, scratch, channels, job.width, write_up_to);
        else
            place_channels(part, job.tokens, scratch, channels, job.width);
    }
    write_up_to(job.width);
    return OK;
}

// Bytes of a basis `[width][width]` as the path's product wants it.
KVL_EXPORT uint64_t kvl_packed_bytes(uint32_t width, uint32_t path) {
    const Product product = product_of(path);
    return (width + product.channels - 1) / product.channels * product.tile_bytes(width);
}

KVL_EXPORT void kvl_pack_basis(const int8_t* basis, uint32_t width, uint32_t path, uint8_t* out) {
    const Product product = product_of(path);
    const uint32_t groups = product.groups(width), group = product.group, wide = product.channels;
    for (uint32_t channel = 0; channel < width; channel += wide)
        for (uint32_t g = 0; g < groups; g++)
            for (uint32_t i = 0; i < group * wide; i++, out += product.bytes()) {
                const uint32_t k = product.form == Product::PLAIN_BYTES ? i / wide : i % group;
                const uint32_t c = product.form == Product::PLAIN_BYTES ? i % wide : i / group;
                const uint32_t row = g * group + k, column = channel + c;
                const bool inside = row < width && column < width;
                const int16_t number = inside ? basis[static_cast<uint64_t>(row) * width + column] : 0;
                if (product.form == Product::WORDS)
                    std::memcpy(out, &number, 2);
                else
                    *out = static_cast<uint8_t>(product.form == Product::OFFSET_BYTES ? number + 128 : number);
            }
}

KVL_EXPORT void kvl_restore(Restore* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = restore(jobs[i]); });
}
