// The lossy levels from bytes to tensors: a block's segments parsed, its streams decoded, its tensors written.
// codec/entropy/native_segments.py mirrors the structs; codec/segment.py says what is in a segment, and
// codec/segment_reader.py and codec/lossy.py, in NumPy, what is made of it.
#pragma once

#include "synthesis.h"

enum {
    SIDE_CLASSES = 64,       // tables of a side stream that may be named, `CLASSES` in model.py
    FINE_CLASSES = 82,
    CLASSES_PER_OCTAVE = 6,
    CLASSES_PER_GAIN = 3,
    GAIN_MAX = 15,
    ESCAPE_MAX = 1 << 27,
};

// Mirrors `_TABLES`: a set of tables as `Stream` wants them.
struct TableSet {
    const uint32_t* slots;
    const uint16_t* search;
    uint32_t count;
    uint32_t form;
};

// Mirrors `_PART`: what a profile knows of a part.
struct ProfilePart {
    const uint8_t* basis;     // packed for the chunk's product; null where coefficients are channels
    const uint8_t* classes;   // [width] below FINE_CLASSES
    const float* scale;       // [width]
    const float* mean;        // [width]; of an adaptive part nobody asks
    const float* origin_mean; // [width] of the token at position 0
    uint32_t width;
    uint32_t adaptive;        // the chunk brings the means
};

// Mirrors `_PAYLOAD`.
struct Payload {
    const uint8_t* data;
    uint64_t bytes;
};

// Mirrors `_BLOCK`.
struct BlockJob {
    const ProfilePart* parts;   // which cover `width` channels in order
    const Payload* payloads;    // [levels] segments, hostile ones among them
    const Tensor* tensors;
    uint32_t part_count;
    uint32_t tensor_count;
    uint32_t width;
    int32_t status;
};

// Mirrors `_CHUNK`: what its blocks have in common.
struct Chunk {
    const TableSet* tables;     // [levels + 1] of the levels' main streams, then of side streams
    const float* gain_factors;  // [GAIN_MAX + 1] what a unit of a token of that gain is worth
    uint32_t levels;
    uint32_t refinements;       // levels after the base level, those that are not read too
    uint32_t tokens;
    uint32_t at_origin;         // whether the first token was computed at position 0
    uint32_t stream_path;
    uint32_t product_path;
};
