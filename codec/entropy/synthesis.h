// The jobs of the lossy levels' way back: symbols of a block of layers to KV tensors. codec/quantise.py,
// codec/profile.py and codec/rope.py say in NumPy what is done.
#pragma once

#include "jobs.h"

enum { LEVELS_MAX = 4 };

// Mirrors `_PART` in tests/servers/block_restore.py.
struct Part {
    const uint8_t* symbols[LEVELS_MAX];  // [rows of the level][tokens], coarse to fine
    const int32_t* escapes;  // what the base symbols of byte 0 stand for, in order
    const uint8_t* basis;    // as `kvl_pack_basis` made it for the block's path; null where coefficients are channels
    const float* factors;    // [tokens]
    const float* scale;      // [width]
    const float* mean;       // [width]
    const float* first_mean; // [width] of the first token
    uint64_t escape_count;
    uint32_t rows[LEVELS_MAX];  // active coefficients of each level, never fewer than before
    uint32_t levels;
    uint32_t left;           // levels that were not read
    uint32_t start;          // the part's first channel in its block
    uint32_t width;
};

// Mirrors `Element` in native_lossy.py.
enum Element : uint32_t { ELEMENT_FLOAT32 = 0, ELEMENT_FLOAT16 = 1, ELEMENT_BFLOAT16 = 2 };

// Mirrors `_Tensor`: keys or values of one layer, `heads` times `dim` channels of a block from `start` on. The pairs of
// a rotation are (first_dim + i, first_dim + pairs + i), or (first_dim + 2i, first_dim + 2i + 1) when interleaved.
struct Tensor {
    const float* cosines;    // [tokens][pairs]
    const float* sines;      // [tokens][pairs]
    uint8_t* data;           // [heads][tokens][dim], the last dimension without gaps
    int64_t head_stride;     // bytes, any sign
    int64_t token_stride;
    uint32_t start;
    uint32_t heads;
    uint32_t dim;
    uint32_t pairs;          // 0 where nothing is rotated
    uint32_t first_dim;
    uint32_t interleaved;
    uint32_t element;
    uint32_t reserved;
};

// Mirrors `_Restore` in tests/servers/block_restore.py: one block of layers.
struct Restore {
    const Part* parts;       // in the order of their channels
    const Tensor* tensors;
    float* channels;         // [tokens][width], comes back; null where only the tensors are wanted
    uint32_t part_count;
    uint32_t tensor_count;
    uint32_t tokens;
    uint32_t width;
    uint32_t path;
    int32_t status;
};

// Restores a block on this thread; BAD_JOB where it does not fit its description.
Status restore(const Restore& job);

// Writes channels `[tokens][width]` to a tensor, rotated by its angles.
void scatter(const Tensor& tensor, const float* channels, uint64_t width, uint32_t tokens);

// Whether a tensor stays within the channels of a block, and its rotation within a head.
bool fits(const Tensor& tensor, uint32_t width);

enum { TILE_TOKENS = 4, TILE_SUMS_MAX = 4 * 96 };

// sums[t][c] of digits of coefficients times a tile of the basis. `digits` holds, of each of `count` groups of
// consecutive coefficients, GROUP digits to a word for every token of a tile; `list` says which groups these are.
// `excess[t]` is the sum of all digits of a token.
using ProductKernel = void (*)(const uint32_t* digits, const uint32_t* list, uint32_t count, const uint8_t* basis,
                               const int32_t* excess, int32_t* sums);

// How a path multiplies. A tile of the basis is [groups][channels][group] unsigned bytes 128 too large, or [groups]
// [channels][group] int16, or (scalar) [groups][group][channels] int8.
struct Product {
    enum Form : uint32_t { OFFSET_BYTES, WORDS, PLAIN_BYTES };
    ProductKernel kernel;
    uint32_t group;
    uint32_t channels;
    Form form;

    uint32_t bytes() const { return form == WORDS ? 2 : 1; }
    uint32_t groups(uint32_t rows) const { return (rows + group - 1) / group; }
    uint64_t tile_bytes(uint32_t rows) const {
        return static_cast<uint64_t>(groups(rows)) * group * channels * bytes();
    }
};

#if KVL_X86
bool product_avx2(Product& product);    // false where the CPU has not what it takes
bool product_avx512(Product& product);
#endif
