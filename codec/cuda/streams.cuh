// What both directions of the entropy coder on a GPU share: how a main stream lies in its block's symbols.
//
// One warp per stream, lane for lane. The tables of a main stream change from row to row (a coefficient, of all
// tokens) and with the token's gain, so a stream is described by rows instead of runs. A block keeps its symbols in one
// array `[rows][tokens]` that has room for the finest level; a row says where in it its symbols belong.
#pragma once

#include "shim.h"

enum KvlStatus : int32_t {
    KVL_OK = 0,
    KVL_TRUNCATED = 1,
    KVL_TRAILING = 2,
    KVL_BAD_FINAL_STATE = 3,
    KVL_NO_ROOM = 5,
    KVL_BAD_ESCAPES = 6,
    KVL_NOT_FINITE = 7,
    KVL_TOO_LARGE = 8,
};

enum { KVL_SYMBOL_ZERO = 128, KVL_SYMBOL_MAX = 127, KVL_ESCAPE = 0, KVL_CLASSES_PER_GAIN = 3 };

struct KvlRow {
    uint32_t place;  // row of the block's symbols
    uint32_t table;
};

// Where a lane stands: symbol `row * tokens + token` of its stream.
struct KvlCursor {
    uint32_t row;
    int32_t token;

    KVL_DEVICE_MEMBER void set(uint64_t symbol, uint32_t tokens) {
        row = static_cast<uint32_t>(symbol / tokens);
        token = static_cast<int32_t>(symbol % tokens);
    }
    KVL_DEVICE_MEMBER void forward(uint32_t lanes, uint32_t tokens) {
        token += static_cast<int32_t>(lanes);
        while (token >= static_cast<int32_t>(tokens)) {
            token -= static_cast<int32_t>(tokens);
            row++;
        }
    }
    KVL_DEVICE_MEMBER void backward(uint32_t lanes, uint32_t tokens) {
        token -= static_cast<int32_t>(lanes);
        while (token < 0) {
            token += static_cast<int32_t>(tokens);
            row--;
        }
    }
};
