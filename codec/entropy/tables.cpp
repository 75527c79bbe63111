// A segment's tables and which channel uses which, as written; see codec/channel_tables.py.
#include <cstring>

#include "planes.h"
#include "rans.h"
#include "spread.h"

namespace {

enum { CODE_BITS = 6 };

// Numbers of a few bits each, lowest bit first. Bytes beyond the end read as zero: the caller has checked the length.
struct BitReader {
    const uint8_t* at;
    const uint8_t* end;
    uint32_t held = 0;
    uint32_t bits = 0;

    uint32_t take(uint32_t count) {
        while (bits < count) {
            held |= static_cast<uint32_t>(at < end ? *at++ : 0) << bits;
            bits += 8;
        }
        const uint32_t value = held & ((1u << count) - 1);
        held >>= count;
        bits -= count;
        return value;
    }
};

uint64_t bytes_of_bits(uint64_t bits) { return (bits + 7) / 8; }

// Channels in the order of their tables, ties by number; false where a channel names a table that is not there.
bool read_labels(Unpack& job, const uint8_t* from, const uint8_t* end, uint32_t bits) {
    uint32_t next[CLUSTERS_MAX] = {};
    BitReader labels{from, end};
    for (uint32_t channel = 0; channel < job.channels; channel++) {
        const uint32_t label = labels.take(bits);
        if (label >= job.tables) return false;
        next[label]++;
    }
    uint32_t row = 0;
    for (uint32_t k = 0; k < job.tables; k++) {
        const uint32_t channels = next[k];
        job.run_lengths[k] = channels * job.tokens;
        next[k] = row;
        row += channels;
    }
    labels = BitReader{from, end};
    for (uint32_t channel = 0; channel < job.channels; channel++) job.places[channel] = next[labels.take(bits)]++;
    return true;
}

KVL_EVERY_CPU void fill_slots(const uint16_t* frequencies, uint32_t* slots) {
    for (uint32_t symbol = 0; symbol < KVL_SYMBOLS; symbol++) {
        const uint32_t frequency = frequencies[symbol];
        const uint32_t head = symbol | frequency << 8;
        for (uint32_t i = 0; i < frequency; i++) slots[i] = head | i << 20;
        slots += frequency;
    }
}

Status unpack(Unpack& job) {
    const uint64_t labels_at = 2ull * job.tables;
    if (job.tables == 0 || job.tables > CLUSTERS_MAX || job.span_log2 > SPAN_LOG2_MAX) return BAD_JOB;
    if (job.data_bytes < labels_at) return TRUNCATED;
    uint32_t label_bits = 0;
    while (1u << label_bits < job.tables) label_bits++;
    const uint64_t codes_at = labels_at + bytes_of_bits(static_cast<uint64_t>(job.channels) * label_bits);
    uint64_t codes = 0;
    for (uint32_t k = 0; k < job.tables; k++) codes += job.data[2 * k + 1] + 1u;
    job.bytes_used = codes_at + bytes_of_bits(CODE_BITS * codes);
    if (job.data_bytes < job.bytes_used) return TRUNCATED;
    if (!read_labels(job, job.data + labels_at, job.data + codes_at, label_bits)) return BAD_JOB;
    BitReader reader{job.data + codes_at, job.data + job.bytes_used};
    for (uint32_t k = 0; k < job.tables; k++) {
        const uint32_t first = job.data[2 * k], width = job.data[2 * k + 1] + 1u;
        if (first + width > static_cast<uint32_t>(GROUPS) >> job.span_log2) return BAD_JOB;
        uint8_t table[GROUPS] = {};
        for (uint32_t g = first; g < first + width; g++) table[g] = static_cast<uint8_t>(reader.take(CODE_BITS));
        uint16_t* frequencies = job.frequencies + static_cast<uint64_t>(k) * KVL_SYMBOLS;
        if (!frequencies_of_codes(table, job.span_log2, frequencies)) return BAD_JOB;
        fill_slots(frequencies, job.slots + static_cast<uint64_t>(k) * KVL_SLOTS);
    }
    return OK;
}

}  // namespace

bool frequencies_of_codes(const uint8_t* codes, uint32_t span_log2, uint16_t* frequencies) {
    uint32_t weights[KVL_SYMBOLS];
    uint64_t total = 0, room = KVL_SLOTS;
    for (uint32_t s = 0; s < KVL_SYMBOLS; s++) {
        const uint32_t code = codes[((s >> 1) >> span_log2) << 1 | (s & 1)] & 63u;
        weights[s] = code == 0 ? 0 : (4u + (code - 1) % 4) << ((code - 1) / 4);
        total += weights[s];
        room -= code != 0;
    }
    if (total == 0) return false;
    uint32_t top = 0, left = KVL_SLOTS;
    for (uint32_t s = 0; s < KVL_SYMBOLS; s++) {
        frequencies[s] = weights[s] ? static_cast<uint16_t>(1 + weights[s] * room / total) : 0;
        left -= frequencies[s];
        if (frequencies[s] > frequencies[top]) top = s;
    }
    frequencies[top] = static_cast<uint16_t>(frequencies[top] + left);
    if (frequencies[top] == KVL_SLOTS) {
        frequencies[top]--;
        frequencies[top ^ 1] = 1;
    }
    return true;
}

KVL_EXPORT void kvl_unpack(Unpack* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = unpack(jobs[i]); });
}
