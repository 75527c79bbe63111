// Parts without a basis, whose coefficients are channels: straight from symbols to a tensor, a head at a time.
#pragma once

#include <vector>

#include "synthesis.h"

// Writes rows `[dim][stride]` of `tokens` numbers each to a tensor's tokens, `token_stride` bytes apart, in `element`s:
// numbers too large for it become its largest. `stride` and the room of `rows` are whole multiples of TURN.
using TurnKernel = void (*)(const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to,
                            int64_t token_stride, uint32_t element);

// A channel: where the symbols of its first token lie, level by level, and what a unit of them is worth.
struct Row {
    const uint8_t* symbols[LEVELS_MAX];
    float scale;
    float mean;
    float first_mean;  // of the chunk's first token
};

// Writes to `out` `[count][TILE]` what the symbols of `count` rows stand for, of `tokens` tokens (TILE at most) from
// `first` on: as `join` and `reconstruct` in codec/quantise.py, times factor and scale, plus mean. `factors` are of all
// tokens. Escapes and the first mean are the caller's to put right.
using RowKernel = void (*)(const Row* rows, uint32_t count, uint32_t levels, bool halved, const float* factors,
                           uint32_t first, uint32_t tokens, float* out);

// A tile of a head of 64 dimensions is half of a near cache.
enum { TURN = 16, TILE = 64 };

// What a RowKernel writes of one row, number by number.
void take_row_plainly(const Row& row, uint32_t levels, bool halved, const float* factors, uint32_t first,
                      uint32_t tokens, float* out);

// From dimension `first` on, number by number.
void turn_plainly(const float* rows, uint64_t stride, uint32_t first, uint32_t dim, uint32_t tokens, uint8_t* to,
                  int64_t token_stride, uint32_t element);

#if KVL_X86
TurnKernel turn_kernel_avx2();    // null where the CPU has not what it takes
TurnKernel turn_kernel_avx512();
RowKernel row_kernel_avx2();
RowKernel row_kernel_avx512();
#endif

// Which tensors of a job can be written without its channels, and what is needed for it.
class Direct {
public:
    void begin(const Restore& job);
    // Whether all channels of a tensor are of parts without a basis.
    bool covers(const Tensor& tensor) const;
    void write(const Tensor& tensor);

private:
    struct Escaped {
        uint32_t row;
        uint32_t token;
        int32_t number;
    };

    // Rows of a head that are next to each other in one part.
    struct Run {
        uint32_t part;
        uint32_t first;  // dimension of the head
        uint32_t count;
        bool escaped;    // whether any of its symbols is an escape
    };
    // The escapes of a row that are still to come, in the order of their tokens.
    struct Coming {
        const Escaped* next;
        const Escaped* end;
    };

    void note_escapes(uint32_t index);
    void take_angles(const Tensor& tensor);
    void describe_head(const Tensor& tensor, uint32_t channel);
    void put_right(const Run& run, uint32_t token, uint32_t tokens);
    void call(const Tensor& tensor, uint32_t token) const;
    void write_tile(const Tensor& tensor, uint32_t token, uint32_t tokens, uint8_t* to);

    const Restore* job_ = nullptr;
    TurnKernel turn_ = nullptr;
    RowKernel take_rows_ = nullptr;
    std::vector<uint32_t> owners_;  // [width] the part of each channel
    std::vector<std::vector<Escaped>> escapes_;
    std::vector<uint8_t> zero_symbols_, zeros_;  // [tokens] a row that is not active
    std::vector<Row> rows_;         // [dim] of a head
    std::vector<Coming> coming_;    // [dim]
    std::vector<Run> runs_;
    std::vector<float> number_room_, cosine_room_, sine_room_;
    std::vector<uint8_t> turned_room_;
    float* numbers_ = nullptr;    // [dim][TILE]
    uint8_t* turned_ = nullptr;   // [TILE][dim] elements
    float *cosines_ = nullptr, *sines_ = nullptr;  // [pairs][angle_stride_]
    const float* angles_of_ = nullptr;
    uint64_t angle_stride_ = 0;
};
