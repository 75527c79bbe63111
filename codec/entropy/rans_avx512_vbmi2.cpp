// The entropy decoder's searches where AVX-512 moves single words (Ice Lake, Zen 4 and later).
#include "coder.h"

#if KVL_X86
// GCC 12 warns of its own intrinsics headers (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define KVL_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx2,bmi,bmi2,popcnt")))
#define KVL_STEP KVL_TARGET __attribute__((always_inline)) inline
#include "rans_words.h"

namespace {

// Words next in line to the lanes of a mask; others stay.
struct ExpandWords {
    static KVL_STEP __m512i words(__m512i others, __mmask32 lanes, const uint8_t* at) {
        return _mm512_mask_expand_epi16(others, lanes, _mm512_loadu_si512(at));
    }
};

}  // namespace

DecodeKernel decode_kernel_vbmi2(uint32_t lanes, uint32_t in_flight, Form form) {
    return searches_avx512(lanes, form) ? decode_words<ExpandWords>(in_flight, form) : nullptr;
}
#endif
