// What the fuzz targets share: the input as numbers, heap blocks of exact sizes, and what to do where an invariant fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

// The input, byte by byte; past its end come the numbers of a generator seeded with all of it.
struct Input {
    const uint8_t* at;
    const uint8_t* end;
    uint64_t state;

    Input(const uint8_t* data, size_t size) : at(data), end(data + size), state(size) {
        for (size_t i = 0; i < size; i++) state = (state ^ data[i]) * 0x100000001B3ull;
    }
    uint32_t random() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    uint8_t byte() { return at < end ? *at++ : static_cast<uint8_t>(random() >> 23); }
    uint32_t below(uint32_t limit) { return (byte() | static_cast<uint32_t>(byte()) << 8) % limit; }
    bool one_in(uint32_t n) { return byte() % n == 0; }
};

// A heap block of exactly `count` items, also of none, for the sanitizers to watch.
template <class T>
std::unique_ptr<T[]> block(uint64_t count) {
    return std::unique_ptr<T[]>(new T[count]());
}

}  // namespace
