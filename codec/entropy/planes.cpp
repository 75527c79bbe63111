// The bit-plane merge of the exact level; see codec/lossless.py.
#include "jobs.h"
#include "spread.h"

namespace {

KVL_EVERY_CPU void merge(const Merge& m) {
    for (uint64_t row = 0; row < m.rows; row++) {
        const uint64_t base = row * m.row_values;
        uint8_t* out = m.out + row * m.row_stride;
        if (m.form == 2) {
            uint32_t* values = reinterpret_cast<uint32_t*>(out);
            for (uint64_t i = 0; i < m.row_values; i++) {
                uint32_t middle = m.middle[base + i];
                values[i] = ((middle & 0x80u) << 24) | (static_cast<uint32_t>(m.coded[base + i]) << 23) |
                            ((middle & 0x7Fu) << 16) | load_u16(m.low + 2 * (base + i));
            }
        } else {
            uint16_t* values = reinterpret_cast<uint16_t*>(out);
            for (uint64_t i = 0; i < m.row_values; i++) {
                uint32_t middle = m.middle[base + i], coded = m.coded[base + i];
                values[i] = static_cast<uint16_t>(m.form == 1 ? ((middle & 0x80u) << 8) | (coded << 7) | (middle & 0x7Fu)
                                                              : (coded << 8) | middle);
            }
        }
    }
}

}  // namespace

KVL_EXPORT void kvl_merge(const Merge* merges, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { merge(merges[i]); });
}
