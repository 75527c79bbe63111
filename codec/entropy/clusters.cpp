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
    ROUNDS_BEFORE = 3,
    ROUNDS_AFTER = 2,
};

using Table = int64_t[GROUPS];

struct Work {
    const Cluster& job;
    uint32_t first;    // the group that stands first in `counts` and `tables`
    uint32_t groups;   // groups from there to the last one that occurs
    int32_t* counts;   // [channels][groups]
    uint8_t* labels;   // [channels]
    Table tables[CLUSTERS_MAX];
    uint32_t used;
};

int64_t log2_units(const Cluster& job, int64_t x) {
    if (x <= 1) return 0;
    const double wide = static_cast<double>(x);  // exact below 2^53
    uint64_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return static_cast<int64_t>((bits >> 52) - 1023) * UNIT + job.log2[bits >> 44 & 0xFF];
}

void sum_tables(Work& work) {
    std::memset(work.tables, 0, sizeof work.tables);
    for (uint32_t channel = 0; channel < work.job.channels; channel++) {
        const int32_t* counts = work.counts + static_cast<uint64_t>(channel) * work.groups;
        int64_t* table = work.tables[work.labels[channel]];
        for (uint32_t g = 0; g < work.groups; g++) table[g] += counts[g];
    }
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

KVL_EVERY_CPU void cheapest(const int32_t* counts, const int32_t (*costs)[CLUSTERS_MAX], uint32_t channels,
                            uint32_t groups, uint32_t used, uint8_t* labels) {
    for (uint32_t channel = 0; channel < channels; channel++) {
        const int32_t* row = counts + static_cast<uint64_t>(channel) * groups;
        int32_t sums[CLUSTERS_MAX] = {};
        for (uint32_t g = 0; g < groups; g++)
            for (int k = 0; k < CLUSTERS_MAX; k++) sums[k] += row[g] * costs[g][k];
        uint32_t best = 0;
        for (uint32_t k = 1; k < used; k++)
            if (sums[k] < sums[best]) best = k;
        labels[channel] = static_cast<uint8_t>(best);
    }
}

// Every channel moves to the table that codes it in the fewest bits.
void reassign(Work& work) {
    int32_t costs[GROUPS][CLUSTERS_MAX] = {};
    for (uint32_t k = 0; k < work.used; k++) {
        int64_t total = 0;
        for (uint32_t g = 0; g < work.groups; g++) total += work.tables[k][g];
        const int64_t whole = log2_units(work.job, total);
        for (uint32_t g = 0; g < work.groups; g++) {
            const int64_t count = work.tables[k][g];
            const int64_t cost = whole - log2_units(work.job, count);
            costs[g][k] = static_cast<int32_t>(count == 0 ? COST_ABSENT : cost > COST_MAX ? COST_MAX : cost);
        }
    }
    cheapest(work.counts, costs, work.job.channels, work.groups, work.used, work.labels);
    sum_tables(work);
}

// What a table's symbols and the table itself cost; `other` is added to it where given.
int64_t table_cost(const Work& work, const int64_t* table, const int64_t* other) {
    int64_t total = 0, known = 0;
    uint32_t low = work.groups, high = 0;
    for (uint32_t g = 0; g < work.groups; g++) {
        const int64_t count = table[g] + (other ? other[g] : 0);
        if (count == 0) continue;
        low = low == work.groups ? g : low;
        high = g;
        total += count;
        known += count * log2_units(work.job, count);
    }
    return total * log2_units(work.job, total) - known + UNIT * (TABLE_BITS + CODE_BITS * (high - low + 1));
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

void groups_in_use(const Cluster& job, uint32_t& first, uint32_t& groups) {
    uint32_t seen[GROUPS] = {};
    for (uint32_t channel = 0; channel < job.channels; channel++)
        for (uint32_t g = 0; g < GROUPS; g++) seen[g] |= job.counts[static_cast<uint64_t>(channel) * GROUPS + g];
    uint32_t low = 0, high = GROUPS;
    while (low < GROUPS - 1 && !seen[low]) low++;
    while (high > low + 1 && !seen[high - 1]) high--;
    first = low;
    groups = high - low;
}

// Channels in the order of their mean magnitude, cut into as many equal parts as there are tables.
void label_by_magnitude(Work& work, uint64_t* order) {
    for (uint32_t channel = 0; channel < work.job.channels; channel++) {
        const int32_t* counts = work.counts + static_cast<uint64_t>(channel) * work.groups;
        uint64_t sum = 0;
        for (uint32_t g = 0; g < work.groups; g++) sum += static_cast<uint64_t>(counts[g]) * ((work.first + g) >> 1);
        order[channel] = sum << 32 | channel;
    }
    std::sort(order, order + work.job.channels);
    for (uint32_t i = 0; i < work.job.channels; i++)
        work.labels[static_cast<uint32_t>(order[i])] =
            static_cast<uint8_t>(static_cast<uint64_t>(i) * work.used / work.job.channels);
}

Status cluster(Cluster& job) {
    uint32_t first, groups;
    groups_in_use(job, first, groups);
    std::unique_ptr<int32_t[]> counts(new (std::nothrow) int32_t[static_cast<uint64_t>(job.channels) * groups]);
    std::unique_ptr<uint64_t[]> order(new (std::nothrow) uint64_t[job.channels]);
    if (!counts || !order) return NO_ROOM;
    Work work{job, first, groups, counts.get(), job.labels, {}, 0};
    for (uint32_t channel = 0; channel < job.channels; channel++)
        for (uint32_t g = 0; g < groups; g++)
            work.counts[static_cast<uint64_t>(channel) * groups + g] =
                job.counts[static_cast<uint64_t>(channel) * GROUPS + first + g];
    work.used = job.channels < CLUSTERS_MAX ? job.channels : CLUSTERS_MAX;
    label_by_magnitude(work, order.get());
    sum_tables(work);
    for (int round = 0; round < ROUNDS_BEFORE; round++) reassign(work);
    drop_empty(work);
    merge_tables(work);
    for (int round = 0; round < ROUNDS_AFTER; round++) reassign(work);
    drop_empty(work);
    job.tables_used = work.used;
    std::memset(job.tables, 0, CLUSTERS_MAX * sizeof(Table));
    for (uint32_t k = 0; k < work.used; k++)
        std::memcpy(job.tables + static_cast<uint64_t>(k) * GROUPS + first, work.tables[k], groups * sizeof(int64_t));
    return OK;
}

}  // namespace

KVL_EXPORT void kvl_cluster(Cluster* jobs, uint32_t count, uint32_t threads) {
    spread(count, threads, [&](uint32_t i) { jobs[i].status = cluster(jobs[i]); });
}
