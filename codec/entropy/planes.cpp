// The bit planes of the exact level: values to symbols and stored bits, and back; see codec/planes.py.
//
// Symbols stand channel by channel, tensors token by token: both directions turn tiles of tokens that stay in cache.
#include "planes.h"

#include <cstring>
#include <memory>
#include <new>

#include "rans.h"
#include "spread.h"

#if KVL_X86
#include <emmintrin.h>
#endif

// AVX2 is chosen by feature: "arch=haswell" would keep it from other makers' CPUs. GCC knows no clones for AVX-512BW,
// and plain AVX-512 has nothing for bytes.
#if KVL_X86 && !defined(__clang__) && defined(__GLIBC__)
#define KVL_EVERY_CPU_BYTES __attribute__((target_clones("avx2", "default")))
#else
#define KVL_EVERY_CPU_BYTES
#endif

namespace {

enum { TILE = 64, TURN = 16 };

// A tile holds this many tokens: fewer where a head is so wide that 64 would fall out of the cache.
uint32_t tile_tokens(uint32_t head_dim) { return head_dim <= 256 ? TILE : TURN; }

// to[column][row] = from[row][column] for `rows` x `columns` bytes.
void turn_part(const uint8_t* from, uint64_t from_stride, uint8_t* to, uint64_t to_stride, uint32_t rows,
               uint32_t columns) {
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

#if KVL_X86
// Rows come from `row_of(r)`: they need not be evenly spaced.
template <class RowOf>
KVL_BODY void turn_16(const RowOf& row_of, uint8_t* to, uint64_t to_stride) {
    __m128i a[TURN], b[TURN];
    for (int r = 0; r < TURN; r++) a[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row_of(r)));
    // Four perfect shuffles of the rows turn the square.
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < TURN / 2; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + TURN / 2]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + TURN / 2]);
        }
        for (int i = 0; i < TURN; i++) a[i] = b[i];
    }
    for (int c = 0; c < TURN; c++) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * to_stride), a[c]);
}
#else
template <class RowOf>
KVL_BODY void turn_16(const RowOf& row_of, uint8_t* to, uint64_t to_stride) {
    for (uint32_t r = 0; r < TURN; r++) turn_part(row_of(r), 0, to + r, to_stride, 1, TURN);
}
#endif

// to[column][row] for `rows` rows found through `row_of` and `columns` columns.
template <class RowOf>
KVL_BODY void turn(const RowOf& row_of, uint8_t* to, uint64_t to_stride, uint32_t rows, uint32_t columns) {
    uint32_t r = 0;
    for (; r + TURN <= rows; r += TURN) {
        uint32_t c = 0;
        for (; c + TURN <= columns; c += TURN)
            turn_16([&](uint32_t i) { return row_of(r + i) + c; }, to + c * to_stride + r, to_stride);
        for (uint32_t i = r; i < r + TURN; i++)
            turn_part(row_of(i) + c, 0, to + c * to_stride + i, to_stride, 1, columns - c);
    }
    for (; r < rows; r++) turn_part(row_of(r), 0, to + r, to_stride, 1, columns);
}

// ---- stored bits

// Whole blocks of six-bit rests: 32 bytes of low halves, 16 bytes of the upper two bits.
KVL_BODY void unpack_rests(const uint8_t* packed, uint64_t blocks, uint8_t* rests) {
    for (uint64_t b = 0; b < blocks; b++, packed += REST_BLOCK_BYTES, rests += REST_BLOCK_VALUES)
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 16; i++)
                rests[16 * part + i] = static_cast<uint8_t>((packed[16 * (part & 1) + i] >> (4 * (part >> 1)) & 15) |
                                                            (packed[32 + i] >> (2 * part) & 3) << 4);
}

KVL_BODY void pack_rests(const uint8_t* rests, uint64_t blocks, uint8_t* packed) {
    for (uint64_t b = 0; b < blocks; b++, packed += REST_BLOCK_BYTES, rests += REST_BLOCK_VALUES) {
        for (int i = 0; i < 32; i++) packed[i] = static_cast<uint8_t>((rests[i] & 15) | (rests[32 + i] & 15) << 4);
        for (int i = 0; i < 16; i++)
            packed[32 + i] = static_cast<uint8_t>(rests[i] >> 4 | (rests[16 + i] >> 4) << 2 |
                                                  (rests[32 + i] >> 4) << 4 | (rests[48 + i] >> 4) << 6);
    }
}

uint64_t rest_blocks(uint64_t values) { return (values + REST_BLOCK_VALUES - 1) / REST_BLOCK_VALUES; }

// ---- one value

// In the integer `T` as wide as the value, so that a vector holds as many of them as there is room for.
template <class T>
KVL_BODY T window_index(T magnitude, T base) {
    const T index = static_cast<T>(magnitude - base);  // wraps below the base, and is then far beyond the window
    const T above = static_cast<T>(base + 1);
    const T upper = magnitude > above ? index : static_cast<T>(0);
    const T inside = upper < static_cast<T>(WINDOW) ? upper : static_cast<T>(0);
    return magnitude == 0 ? static_cast<T>(1) : inside;
}

template <class T>
KVL_BODY T window_magnitude(T index, T base) {
    return index <= 1 ? static_cast<T>(0) : static_cast<T>(index + base);
}

// ---- join

template <uint32_t FORM, class Word>
KVL_BODY void join_run(const Join& job, const uint8_t* __restrict symbols, const uint8_t* __restrict rests,
                       const uint8_t* __restrict lows, Word* __restrict out, uint64_t count) {
    const Word base = static_cast<Word>(job.base);
    for (uint64_t i = 0; i < count; i++) {
        const Word symbol = symbols[i];
        if constexpr (FORM == FORM_BYTE) {
            out[i] = static_cast<Word>(symbol >> 1 | symbol << 7);
        } else if constexpr (FORM == FORM_FLOAT16) {
            out[i] = static_cast<Word>((symbol & 1) << 15 | (symbol >> 1) << 8 | rests[i]);
        } else if constexpr (FORM == FORM_BFLOAT16) {
            out[i] = static_cast<Word>((symbol & 1) << 15 | window_magnitude<Word>(symbol >> 1, base) << 6 | rests[i]);
        } else {
            out[i] = (symbol & 1) << 31 | window_magnitude<Word>(symbol >> 1, base) << 22 |
                     static_cast<uint32_t>(rests[i]) << 16 | load_u16(lows + 2 * i);
        }
    }
}

// `room`: a tile of symbols, a tile of rests with a block to spare on either side, and a row of values.
template <uint32_t FORM, class Word>
KVL_BODY void join_form(const Join& job, uint8_t* room) {
    constexpr bool SIX_BITS = FORM == FORM_BFLOAT16 || FORM == FORM_FLOAT32;
    const uint32_t tile = tile_tokens(job.head_dim);
    const uint64_t values = static_cast<uint64_t>(job.heads) * job.tokens * job.head_dim;
    const uint8_t* lows = job.rest + rest_blocks(values) * REST_BLOCK_BYTES;
    uint8_t* symbols = room;
    uint8_t* unpacked = symbols + static_cast<uint64_t>(tile) * job.head_dim;
    Word* row = reinterpret_cast<Word*>(unpacked + static_cast<uint64_t>(tile) * job.head_dim + 2 * REST_BLOCK_VALUES);
    const bool dense = job.value_stride == sizeof(Word);
    const bool joined = dense && job.token_stride == static_cast<int64_t>(sizeof(Word)) * job.head_dim;
    for (uint32_t head = 0; head < job.heads; head++) {
        const uint32_t* places = job.places + static_cast<uint64_t>(head) * job.head_dim;
        for (uint32_t token = 0; token < job.tokens; token += tile) {
            const uint32_t tokens = job.tokens - token < tile ? job.tokens - token : tile;
            const uint64_t first = (static_cast<uint64_t>(head) * job.tokens + token) * job.head_dim;
            const uint64_t count = static_cast<uint64_t>(tokens) * job.head_dim;
            turn([&](uint32_t d) { return job.symbols + static_cast<uint64_t>(places[d]) * job.tokens + token; },
                 symbols, job.head_dim, job.head_dim, tokens);
            const uint8_t* rests = job.rest + first;
            if constexpr (SIX_BITS) {
                const uint64_t block = first / REST_BLOCK_VALUES;
                unpack_rests(job.rest + block * REST_BLOCK_BYTES, rest_blocks(first + count) - block, unpacked);
                rests = unpacked + first % REST_BLOCK_VALUES;
            }
            uint8_t* out = job.out + head * job.head_stride + static_cast<int64_t>(token) * job.token_stride;
            if (joined) {
                join_run<FORM>(job, symbols, rests, lows + 2 * first, reinterpret_cast<Word*>(out), count);
                continue;
            }
            for (uint32_t t = 0; t < tokens; t++, out += job.token_stride) {
                const uint64_t at = static_cast<uint64_t>(t) * job.head_dim;
                Word* to = dense ? reinterpret_cast<Word*>(out) : row;
                join_run<FORM>(job, symbols + at, rests + at, lows + 2 * (first + at), to, job.head_dim);
                if (dense) continue;
                for (uint32_t d = 0; d < job.head_dim; d++)
                    std::memcpy(out + static_cast<int64_t>(d) * job.value_stride, row + d, sizeof(Word));
            }
        }
    }
}

KVL_EVERY_CPU_BYTES void join_room(const Join& job, uint8_t* room) {
    switch (job.form) {
        case FORM_BYTE: return join_form<FORM_BYTE, uint8_t>(job, room);
        case FORM_FLOAT16: return join_form<FORM_FLOAT16, uint16_t>(job, room);
        case FORM_BFLOAT16: return join_form<FORM_BFLOAT16, uint16_t>(job, room);
        default: return join_form<FORM_FLOAT32, uint32_t>(job, room);
    }
}

uint64_t room_bytes(uint32_t head_dim) {
    const uint64_t tile = static_cast<uint64_t>(tile_tokens(head_dim)) * head_dim;
    return 2 * tile + 2 * REST_BLOCK_VALUES + 4ull * head_dim;
}

Status join(const Join& job) {
    // Aligned for a uint32: what stands before the row of values is a multiple of 4 bytes.
    std::unique_ptr<uint8_t[]> room(new (std::nothrow) uint8_t[room_bytes(job.head_dim)]);
    if (!room) return NO_ROOM;
    join_room(job, room.get());
    return OK;
}

// ---- split

template <uint32_t FORM, class Word>
KVL_BODY void split_run(const Word* __restrict values, uint32_t whole_base, uint8_t* __restrict symbols,
                        uint8_t* __restrict rests, uint8_t* __restrict lows, uint64_t count) {
    const Word base = static_cast<Word>(whole_base);
    for (uint64_t i = 0; i < count; i++) {
        const Word bits = values[i];
        if constexpr (FORM == FORM_BYTE) {
            symbols[i] = static_cast<uint8_t>(bits << 1 | bits >> 7);
        } else if constexpr (FORM == FORM_FLOAT16) {
            symbols[i] = static_cast<uint8_t>((bits >> 8 & 0x7F) << 1 | bits >> 15);
            rests[i] = static_cast<uint8_t>(bits);
        } else if constexpr (FORM == FORM_BFLOAT16) {
            symbols[i] = static_cast<uint8_t>(window_index<Word>(bits >> 6 & 0x1FF, base) << 1 | bits >> 15);
            rests[i] = bits & 0x3F;
        } else {
            symbols[i] = static_cast<uint8_t>(window_index<Word>(bits >> 22 & 0x1FF, base) << 1 | bits >> 31);
            rests[i] = bits >> 16 & 0x3F;
            lows[2 * i] = static_cast<uint8_t>(bits);
            lows[2 * i + 1] = static_cast<uint8_t>(bits >> 8);
        }
    }
}

// The largest magnitude that is neither infinite nor NaN, plus 2: those two come out as 0 and 1, without a branch.
template <uint32_t SHIFT, class Word>
KVL_BODY uint32_t largest_magnitude(const Word* values, uint64_t count, uint32_t found) {
    Word largest = static_cast<Word>(found);
    for (uint64_t i = 0; i < count; i++) {
        const Word moved = static_cast<Word>((values[i] >> SHIFT) + 2) & 0x1FF;
        largest = moved > largest ? moved : largest;
    }
    return largest;
}

// Calls `work(values, first, count)` for every stretch of values that lie together.
template <class Word, class Work>
KVL_BODY void each_stretch(const Split& job, uint32_t step, const Work& work) {
    const bool joined = job.token_stride == static_cast<int64_t>(sizeof(Word)) * job.head_dim;
    for (uint32_t head = 0; head < job.heads; head++)
        for (uint32_t token = 0; token < job.tokens; token += joined ? step : 1) {
            const uint32_t tokens = !joined ? 1 : job.tokens - token < step ? job.tokens - token : step;
            const uint8_t* at = job.values + head * job.head_stride + static_cast<int64_t>(token) * job.token_stride;
            work(reinterpret_cast<const Word*>(at),
                 (static_cast<uint64_t>(head) * job.tokens + token) * job.head_dim,
                 static_cast<uint64_t>(tokens) * job.head_dim);
        }
}

template <uint32_t FORM, class Word>
KVL_BODY void split_form(Split& job, uint8_t* flat, uint8_t* rests) {
    constexpr bool WINDOWED = FORM == FORM_BFLOAT16 || FORM == FORM_FLOAT32;
    const uint32_t tile = tile_tokens(job.head_dim);
    const uint64_t values = static_cast<uint64_t>(job.heads) * job.tokens * job.head_dim;
    uint8_t* lows = job.rest + rest_blocks(values) * REST_BLOCK_BYTES;
    job.base = 0;
    if constexpr (WINDOWED) {
        uint32_t largest = 2;
        each_stretch<Word>(job, job.tokens, [&](const Word* from, uint64_t, uint64_t count) {
            largest = largest_magnitude<8 * sizeof(Word) - 10>(from, count, largest);
        });
        largest -= 2;
        job.base = largest >= WINDOW ? largest - (WINDOW - 1) : 0;
    }
    uint8_t* stored = WINDOWED ? rests : job.rest;
    each_stretch<Word>(job, tile, [&](const Word* from, uint64_t first, uint64_t count) {
        split_run<FORM>(from, job.base, flat + first, stored + first, lows + 2 * first, count);
    });
    if constexpr (WINDOWED) pack_rests(rests, rest_blocks(values), job.rest);
    for (uint32_t head = 0; head < job.heads; head++)
        for (uint32_t token = 0; token < job.tokens; token += tile) {
            const uint32_t tokens = job.tokens - token < tile ? job.tokens - token : tile;
            const uint8_t* from = flat + (static_cast<uint64_t>(head) * job.tokens + token) * job.head_dim;
            turn([&](uint32_t t) { return from + static_cast<uint64_t>(t) * job.head_dim; },
                 job.symbols + static_cast<uint64_t>(head) * job.head_dim * job.tokens + token, job.tokens, tokens,
                 job.head_dim);
        }
}

KVL_EVERY_CPU_BYTES void split_room(Split& job, uint8_t* flat, uint8_t* rests) {
    switch (job.form) {
        case FORM_BYTE: return split_form<FORM_BYTE, uint8_t>(job, flat, rests);
        case FORM_FLOAT16: return split_form<FORM_FLOAT16, uint16_t>(job, flat, rests);
        case FORM_BFLOAT16: return split_form<FORM_BFLOAT16, uint16_t>(job, flat, rests);
        default: return split_form<FORM_FLOAT32, uint32_t>(job, flat, rests);
    }
}

KVL_EVERY_CPU_BYTES void count_symbols(const Split& job) {
    const uint64_t channels = static_cast<uint64_t>(job.heads) * job.head_dim;
    for (uint64_t channel = 0; channel < channels; channel++) {
        // Neighbours are often equal: four counters in turn, so that no increment waits for the one before it.
        uint16_t parts[4][KVL_SYMBOLS] = {};
        const uint8_t* symbols = job.symbols + channel * job.tokens;
        uint32_t t = 0;
        for (; t + 4 <= job.tokens; t += 4)
            for (int part = 0; part < 4; part++) parts[part][symbols[t + part]]++;
        for (; t < job.tokens; t++) parts[0][symbols[t]]++;
        uint16_t* counts = job.counts + channel * GROUPS;
        for (int s = 0; s < KVL_SYMBOLS; s++)
            counts[s] = static_cast<uint16_t>(parts[0][s] + parts[1][s] + parts[2][s] + parts[3][s]);
    }
}

Status split(Split& job) {
    if (job.tokens > 0xFFFF) return BAD_JOB;  // counts are 16 bits
    const uint64_t values = static_cast<uint64_t>(job.heads) * job.tokens * job.head_dim;
    const uint64_t padded = rest_blocks(values) * REST_BLOCK_VALUES;
    std::unique_ptr<uint8_t[]> room(new (std::nothrow) uint8_t[2 * padded]);
    if (!room) return NO_ROOM;
    std::memset(room.get() + padded + values, 0, padded - values);
    split_room(job, room.get(), room.get() + padded);
    count_symbols(job);
    return OK;
}

}  // namespace

KVL_EXPORT void kvl_join(Join* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = join(jobs[i]); });
}

KVL_EXPORT void kvl_split(Split* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = split(jobs[i]); });
}
