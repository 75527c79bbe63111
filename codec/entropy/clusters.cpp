// Which channels of the exact level share a table; codec/clusters.py is the specification, integer for integer.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "planes.h"
#include "spread.h"

namespace {

enum {
    UNIT = 64,                // costs are in 64ths of a bit
    COST_MAX = 12 * UNIT,
    COST_ABSENT = 13 * UNIT,
    TABLE_BITS = 16,          // what a table costs beside its codes
    CODE_BITS = 6,
    ROUNDS_BEFORE = 2,
    ROUNDS_AFTER = 1,
    LOG2_COUNT = 4096,
    TOKENS_MAX = 20000,       // 2^24 / COST_ABSENT
};

using Table = int64_t[GROUPS];

struct Work {
    const Cluster& job;
    uint32_t first;    // the group that stands first in `counts` and `tables`
    uint32_t groups;   // groups from there to the last one that occurs
    uint16_t* rows;    // [channels][groups] how often each group occurs
    float* counts;     // the same; sums of products with costs stay below 2^24, and so exact
    uint8_t* labels;   // [channels]
    Table tables[CLUSTERS_MAX];
    uint32_t used;
};

int64_t log2_units(const Cluster& job, int64_t x) {
    if (x < LOG2_COUNT) return job.log2[x];
    const double wide = static_cast<double>(x);  // exact below 2^53
    uint64_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return static_cast<int64_t>((bits >> 52) - 1023) * UNIT + job.log2_mantissa[bits >> 44 & 0xFF];
}

KVL_EVERY_CPU void add_rows(const uint16_t* __restrict rows, const uint8_t* __restrict labels, uint32_t channels,
                            uint32_t groups, uint32_t (*__restrict sums)[GROUPS]) {
    for (uint32_t channel = 0; channel < channels; channel++, rows += groups) {
        uint32_t* __restrict sum = sums[labels[channel]];
        for (uint32_t g = 0; g < groups; g++) sum[g] += rows[g];
    }
}

void sum_tables(Work& work) {
    uint32_t sums[CLUSTERS_MAX][GROUPS] = {};  // a segment has fewer than 2^32 values
    add_rows(work.rows, work.labels, work.job.channels, work.groups, sums);
    for (uint32_t k = 0; k < work.used; k++)
        for (uint32_t g = 0; g < work.groups; g++) work.tables[k][g] = sums[k][g];
}

// Drops tables that no channel uses; the others keep their order.
void drop_empty(Work& work) {
    uint8_t place[CLUSTERS_MAX];
    bool taken[CLUSTERS_MAX] = {};
    for (uint32_t channel = 0; channel < work.job.channels; channel++) taken[work.labels[channel]] = true;
    uint32_t kept = 0;
    for (uint32_t k = 0; k < work.used; k++) {
        place[k] = static_cast<uint8_t>(kept);
        if (!taken[k]) continue;
        if (kept != k) std::memcpy(work.tables[kept], work.tables[k], sizeof(Table));
        kept++;
    }
    for (uint32_t channel = 0; channel < work.job.channels; channel++)
        work.labels[channel] = place[work.labels[channel]];
    work.used = kept;
}

#if defined(__GNUC__)
typedef float TableCosts __attribute__((vector_size(CLUSTERS_MAX * sizeof(float))));  // as wide as the CPU can
#else
struct TableCosts {
    float of[CLUSTERS_MAX];
    float& operator[](uint32_t k) { return of[k]; }
    void operator+=(const TableCosts& other) {
        for (int k = 0; k < CLUSTERS_MAX; k++) of[k] += other.of[k];
    }
    friend TableCosts operator*(float count, const TableCosts& costs) {
        TableCosts product;
        for (int k = 0; k < CLUSTERS_MAX; k++) product.of[k] = count * costs.of[k];
        return product;
    }
};
#endif

// What coding each of `CHANNELS` channels with each table costs.
template <int CHANNELS>
KVL_BODY void cost_sums(const float* counts, const TableCosts* costs, uint32_t groups, TableCosts* sums) {
    TableCosts own[CHANNELS] = {};
    for (uint32_t g = 0; g < groups; g++)
        for (int c = 0; c < CHANNELS; c++) own[c] += counts[static_cast<uint64_t>(c) * groups + g] * costs[g];
    for (int c = 0; c < CHANNELS; c++) sums[c] = own[c];
}

KVL_EVERY_CPU void cheapest(const float* counts, const TableCosts* costs, uint32_t channels, uint32_t groups,
                            uint32_t used, uint8_t* labels) {
    enum { TOGETHER = 4 };
    TableCosts sums[TOGETHER];
    for (uint32_t channel = 0; channel < channels; channel += TOGETHER) {
        const uint32_t here = channels - channel < TOGETHER ? channels - channel : TOGETHER;
        const float* rows = counts + static_cast<uint64_t>(channel) * groups;
        if (here == TOGETHER)
            cost_sums<TOGETHER>(rows, costs, groups, sums);
        else
            for (uint32_t c = 0; c < here; c++)
                cost_sums<1>(rows + static_cast<uint64_t>(c) * groups, costs, groups, sums + c);
        for (uint32_t c = 0; c < here; c++) {
            uint32_t best = 0;
            for (uint32_t k = 1; k < used; k++)
                if (sums[c][k] < sums[c][best]) best = k;
            labels[channel + c] = static_cast<uint8_t>(best);
        }
    }
}

// Every channel moves to the table that codes it in the fewest bits.
void reassign(Work& work) {
    TableCosts costs[GROUPS] = {};
    for (uint32_t k = 0; k < work.used; k++) {
        int64_t total = 0;
        for (uint32_t g = 0; g < work.groups; g++) total += work.tables[k][g];
        const int64_t whole = log2_units(work.job, total);
        for (uint32_t g = 0; g < work.groups; g++) {
            const int64_t count = work.tables[k][g];
            const int64_t cost = whole - log2_units(work.job, count);
            costs[g][k] = static_cast<float>(count == 0 ? COST_ABSENT : cost > COST_MAX ? COST_MAX : cost);
        }
    }
    cheapest(work.counts, costs, work.job.channels, work.groups, work.used, work.labels);
    sum_tables(work);
}

// What the symbols of a table cost, and how many groups its codes span; `other` is added to it where given.
int64_t symbol_cost(const Cluster& job, const int64_t* table, const int64_t* other, uint32_t groups, uint32_t& width) {
    int64_t total = 0, known = 0;
    uint32_t low = groups, high = 0;
    for (uint32_t g = 0; g < groups; g++) {
        const int64_t count = table[g] + (other ? other[g] : 0);
        if (count == 0) continue;
        low = low == groups ? g : low;
        high = g;
        total += count;
        known += count * log2_units(job, count);
    }
    width = high - low + 1;
    return total * log2_units(job, total) - known;
}

int64_t table_cost(const Work& work, const int64_t* table, const int64_t* other) {
    uint32_t width;
    const int64_t symbols = symbol_cost(work.job, table, other, work.groups, width);
    return symbols + UNIT * (TABLE_BITS + CODE_BITS * static_cast<int64_t>(width));
}

// The span that would be cheapest if all channels shared one distribution, written as often as there may be tables.
uint32_t cheapest_span(const Cluster& job, const uint32_t* counts) {
    const uint64_t values = static_cast<uint64_t>(job.channels) * job.tokens;
    const int64_t tables = static_cast<int64_t>(1 + (values >> 14 < CLUSTERS_MAX - 1 ? values >> 14 : CLUSTERS_MAX - 1));
    uint32_t best_span = 0;
    int64_t best = INT64_MAX;
    for (uint32_t span = 0; span <= SPAN_LOG2_MAX; span++) {
        int64_t grouped[GROUPS] = {};
        for (uint32_t s = 0; s < GROUPS; s++) grouped[(s >> 1 >> span) << 1 | (s & 1)] += counts[s];
        uint32_t width;
        const int64_t symbols = symbol_cost(job, grouped, nullptr, GROUPS, width);
        const int64_t within = static_cast<int64_t>(span * values) * UNIT;
        const int64_t cost = symbols + within + tables * UNIT * CODE_BITS * static_cast<int64_t>(width);
        if (cost < best) best = cost, best_span = span;
    }
    return best_span;
}

uint32_t label_bits(uint32_t tables) {
    uint32_t bits = 0;
    while (1u << bits < tables) bits++;
    return bits;
}

// Joins the two tables that lose least, again and again, and keeps the state that was cheapest in all.
void merge_tables(Work& work) {
    int64_t costs[CLUSTERS_MAX], losses[CLUSTERS_MAX][CLUSTERS_MAX], total = 0;
    uint8_t label_of[CLUSTERS_MAX], best_label_of[CLUSTERS_MAX];
    const uint32_t start = work.used;
    uint32_t best_used = start, count = start;
    for (uint32_t k = 0; k < start; k++) {
        label_of[k] = best_label_of[k] = static_cast<uint8_t>(k);
        total += costs[k] = table_cost(work, work.tables[k], nullptr);
    }
    auto loss = [&](uint32_t i, uint32_t j) {
        losses[i][j] = table_cost(work, work.tables[i], work.tables[j]) - costs[i] - costs[j];
    };
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = i + 1; j < count; j++) loss(i, j);
    const int64_t channels = static_cast<int64_t>(UNIT) * work.job.channels;
    int64_t best = total + channels * label_bits(count);
    while (count > 1) {
        uint32_t left = 0, right = 1;
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t j = i + 1; j < count; j++)
                if (losses[i][j] < losses[left][right]) left = i, right = j;
        total += losses[left][right];
        costs[left] += costs[right] + losses[left][right];
        for (uint32_t g = 0; g < work.groups; g++) work.tables[left][g] += work.tables[right][g];
        count--;
        for (uint32_t k = right; k < count; k++) {
            std::memcpy(work.tables[k], work.tables[k + 1], sizeof(Table));
            costs[k] = costs[k + 1];
        }
        for (uint32_t i = 0; i <= count; i++) {
            if (i == right) continue;
            for (uint32_t j = i + 1; j <= count; j++)
                if (j != right) losses[i - (i > right)][j - (j > right)] = losses[i][j];
        }
        for (uint32_t k = 0; k < start; k++) {
            if (label_of[k] == right)
                label_of[k] = static_cast<uint8_t>(left);
            else if (label_of[k] > right)
                label_of[k]--;
        }
        for (uint32_t i = 0; i < count; i++)
            if (i != left) i < left ? loss(i, left) : loss(left, i);
        if (total + channels * label_bits(count) < best) {
            best = total + channels * label_bits(count);
            best_used = count;
            std::memcpy(best_label_of, label_of, start);
        }
    }
    for (uint32_t channel = 0; channel < work.job.channels; channel++)
        work.labels[channel] = best_label_of[work.labels[channel]];
    work.used = best_used;
    sum_tables(work);
}

KVL_EVERY_CPU void count_all(const uint16_t* __restrict rows, uint32_t channels, uint32_t* __restrict counts) {
    for (uint32_t channel = 0; channel < channels; channel++, rows += GROUPS)
        for (uint32_t s = 0; s < GROUPS; s++) counts[s] += rows[s];
}

// Chooses the span and tells which groups occur.
void choose_groups(Cluster& job, uint32_t& first, uint32_t& groups) {
    uint32_t counts[GROUPS] = {};  // a segment has fewer than 2^32 values
    count_all(job.counts, job.channels, counts);
    job.span_log2 = cheapest_span(job, counts);
    uint32_t low = GROUPS, high = 0;
    for (uint32_t s = 0; s < GROUPS; s++) {
        if (counts[s] == 0) continue;
        const uint32_t group = (s >> 1 >> job.span_log2) << 1 | (s & 1);
        low = group < low ? group : low;
        high = group > high ? group : high;
    }
    first = low;
    groups = high - low + 1;
}

void count_groups(Work& work) {
    const uint32_t span = work.job.span_log2, members = 1u << span, first = work.first, groups = work.groups;
    for (uint32_t channel = 0; channel < work.job.channels; channel++) {
        const uint16_t* counts = work.job.counts + static_cast<uint64_t>(channel) * GROUPS;
        uint16_t* row = work.rows + static_cast<uint64_t>(channel) * groups;
        if (span == 0) {
            std::memcpy(row, counts + first, groups * sizeof(uint16_t));
            continue;
        }
        for (uint32_t g = 0; g < groups; g++) {
            const uint32_t group = first + g;
            uint32_t sum = 0;
            for (uint32_t i = 0; i < members; i++) sum += counts[((group >> 1) * members + i) << 1 | (group & 1)];
            row[g] = static_cast<uint16_t>(sum);
        }
    }
    const uint64_t count = static_cast<uint64_t>(work.job.channels) * groups;
    const uint16_t* rows = work.rows;
    float* floats = work.counts;
    for (uint64_t i = 0; i < count; i++) floats[i] = rows[i];
}

// Channels in the order of their mean magnitude, cut into as many equal parts as there are tables.
void label_by_magnitude(Work& work, uint64_t* order) {
    for (uint32_t channel = 0; channel < work.job.channels; channel++) {
        const uint16_t* counts = work.rows + static_cast<uint64_t>(channel) * work.groups;
        uint32_t sum = 0;
        for (uint32_t g = 0; g < work.groups; g++) sum += counts[g] * ((work.first + g) >> 1);
        order[channel] = static_cast<uint64_t>(sum) << 32 | channel;
    }
    std::sort(order, order + work.job.channels);
    for (uint32_t i = 0; i < work.job.channels; i++)
        work.labels[static_cast<uint32_t>(order[i])] =
            static_cast<uint8_t>(static_cast<uint64_t>(i) * work.used / work.job.channels);
}

struct BitWriter {
    uint8_t* at;
    uint32_t held = 0;
    uint32_t bits = 0;

    void put(uint32_t value, uint32_t count) {
        held |= value << bits;
        for (bits += count; bits >= 8; bits -= 8, held >>= 8) *at++ = static_cast<uint8_t>(held);
    }
    void end_byte() {
        if (bits) *at++ = static_cast<uint8_t>(held);
        held = bits = 0;
    }
};

// The code whose weight is nearest to `count`, where `top` has the highest.
uint8_t code_of(int64_t count, int64_t top) {
    if (count == 0) return 0;
    const int64_t target = (count << 17) / top;
    int32_t exponent = 0;
    while (target >> exponent >= 8) exponent++;
    const int64_t mantissa = (target + (1ll << exponent >> 1)) >> exponent;
    const int64_t code = 4 * exponent + mantissa - 3;
    return static_cast<uint8_t>(code < 1 ? 1 : code);
}

// Writes the tables and who uses which, and what the coder needs to know of them.
void pack(const Work& work, Cluster& job) {
    uint8_t codes[CLUSTERS_MAX][GROUPS] = {};
    uint32_t lows[CLUSTERS_MAX], highs[CLUSTERS_MAX];
    BitWriter writer{job.packed};
    for (uint32_t k = 0; k < work.used; k++) {
        int64_t top = 0;
        lows[k] = GROUPS;
        for (uint32_t g = 0; g < work.groups; g++) {
            const int64_t count = work.tables[k][g];
            top = count > top ? count : top;
            if (count == 0) continue;
            lows[k] = lows[k] == GROUPS ? work.first + g : lows[k];
            highs[k] = work.first + g;
        }
        for (uint32_t g = 0; g < work.groups; g++) codes[k][work.first + g] = code_of(work.tables[k][g], top);
        writer.put(lows[k], 8);
        writer.put(highs[k] - lows[k], 8);
        frequencies_of_codes(codes[k], job.span_log2, job.frequencies + static_cast<uint64_t>(k) * GROUPS);
    }
    uint32_t channels_of[CLUSTERS_MAX] = {};
    for (uint32_t channel = 0; channel < job.channels; channel++) {
        writer.put(work.labels[channel], label_bits(work.used));
        channels_of[work.labels[channel]]++;
    }
    writer.end_byte();
    for (uint32_t k = 0; k < work.used; k++)
        for (uint32_t g = lows[k]; g <= highs[k]; g++) writer.put(codes[k][g], CODE_BITS);
    writer.end_byte();
    job.packed_bytes = static_cast<uint32_t>(writer.at - job.packed);
    uint8_t* row = job.sorted;
    for (uint32_t k = 0; k < work.used; k++) {
        job.run_lengths[k] = channels_of[k] * job.tokens;
        for (uint32_t channel = 0; channel < job.channels; channel++) {
            if (work.labels[channel] != k) continue;
            std::memcpy(row, job.symbols + static_cast<uint64_t>(channel) * job.tokens, job.tokens);
            row += job.tokens;
        }
    }
}

Status cluster(Cluster& job) {
    if (job.tokens > TOKENS_MAX) return BAD_JOB;
    uint32_t first, groups;
    choose_groups(job, first, groups);
    const uint64_t counters = static_cast<uint64_t>(job.channels) * groups;
    std::unique_ptr<uint16_t[]> rows(new (std::nothrow) uint16_t[counters]);
    std::unique_ptr<float[]> counts(new (std::nothrow) float[counters]);
    std::unique_ptr<uint64_t[]> order(new (std::nothrow) uint64_t[job.channels]);
    std::unique_ptr<uint8_t[]> labels(new (std::nothrow) uint8_t[job.channels]);
    if (!rows || !counts || !order || !labels) return NO_ROOM;
    Work work{job, first, groups, rows.get(), counts.get(), labels.get(), {}, 0};
    count_groups(work);
    work.used = job.channels < CLUSTERS_MAX ? job.channels : CLUSTERS_MAX;
    label_by_magnitude(work, order.get());
    sum_tables(work);
    for (int round = 0; round < ROUNDS_BEFORE; round++) reassign(work);
    drop_empty(work);
    merge_tables(work);
    for (int round = 0; round < ROUNDS_AFTER; round++) reassign(work);
    drop_empty(work);
    job.tables_used = work.used;
    pack(work, job);
    return OK;
}

}  // namespace

KVL_EXPORT void kvl_cluster(Cluster* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = cluster(jobs[i]); });
}
