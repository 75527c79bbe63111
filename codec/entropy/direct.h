// Parts without a basis, whose coefficients are channels: straight from symbols to a tensor, a head at a time.
#pragma once

#include <vector>

#include "synthesis.h"

// Writes rows `[dim][stride]` of `tokens` numbers each to a tensor's tokens, `token_stride` bytes apart, in `element`s:
// numbers too large for it become its largest. `stride` and the room of `rows` are whole multiples of TURN.
using TurnKernel = void (*)(const float* rows, uint64_t stride, uint32_t dim, uint32_t tokens, uint8_t* to,
                            int64_t token_stride, uint32_t element);

// Writes what the symbols of `levels` levels of a row stand for, as `join` and `reconstruct` in codec/quantise.py, times
// factor and scale, plus mean. `count` is at most TILE.
using RowKernel = void (*)(const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors,
                           uint32_t count, float scale, float mean, float* out);

enum { TURN = 16, ROW = 32, TILE = 256 };

// From token `first` on, number by number.
void take_row_plainly(const uint8_t* const* symbols, uint32_t levels, bool halved, const float* factors, uint32_t first,
                      uint32_t count, float scale, float mean, float* out);

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

    void note_escapes(uint32_t index);
    void take_angles(const Tensor& tensor);
    void take_row(uint32_t channel, uint32_t token, uint32_t tokens, float* out);
    void write_head(const Tensor& tensor, uint32_t channel, uint32_t token, uint32_t tokens, uint8_t* to);

    const Restore* job_ = nullptr;
    TurnKernel turn_ = nullptr;
    RowKernel row_ = nullptr;
    std::vector<uint32_t> owners_;  // [width] the part of each channel
    std::vector<std::vector<Escaped>> escapes_;
    std::vector<uint8_t> zero_symbols_, zeros_;  // [tokens] a row that is not active
    std::vector<float> rows_, cosines_, sines_;
    const float* angles_of_ = nullptr;
    uint64_t angle_stride_ = 0;
};
