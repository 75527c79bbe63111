// Blocks of layers from segments to tensors, a few at a time: as many as have streams decoded together.
//
// A segment's bytes are taken for whatever they say only after every length was held against the bytes there are, the
// profile and the tokens, so nothing is allocated for a number that a hostile segment made up.
#include "segments.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "coder.h"
#include "spread.h"

namespace {

enum { HEAD_BYTES = 12, NO_TABLE = 255, SYMBOL_ZERO = 128, ESCAPE = 0, LANES_LOG2_MAX = 5, SIDE_RUNS = 3 };
enum : uint64_t { KEPT_BYTES_MAX = 64 << 20 };

// Bytes without a value to begin with, kept from one chunk to the next.
class Arena {
public:
    // Null where there is no such room.
    uint8_t* take(uint64_t bytes) {
        if (bytes > held_) {
            room_.reset();
            room_.reset(new (std::nothrow) uint8_t[bytes]);
            held_ = room_ ? bytes : 0;
        }
        return room_.get();
    }
    void release_large() {
        if (held_ > KEPT_BYTES_MAX) room_.reset(), held_ = 0;
    }

private:
    std::unique_ptr<uint8_t[]> room_;
    uint64_t held_ = 0;
};

// A segment's head, and where its pieces lie.
struct Segment {
    uint32_t lanes = 0;
    uint32_t tables[SIDE_RUNS] = {};  // of class differences, means and gains, in the order of the side stream
    std::vector<uint32_t> active;     // [parts]
    uint64_t rows = 0;                // of all parts
    const uint8_t* scales = nullptr;  // float32 of each adaptive part
    const uint8_t* escapes = nullptr;
    uint32_t escape_count = 0;
    Payload side{}, stream{};
};

// What has been read of a block so far.
struct Reading {
    BlockJob* job = nullptr;
    Segment segments[LEVELS_MAX];
    uint64_t means_expected = 0;
    uint32_t fresh[LEVELS_MAX] = {};        // class differences in each level's side stream
    std::vector<uint8_t> side[LEVELS_MAX];  // symbols
    std::vector<uint8_t> classes;           // [width] of the coefficients that are active so far
    std::vector<int32_t> escapes;           // of the means, then of the base symbols
    std::vector<int32_t> means;             // of the adaptive parts
    uint32_t mean_escapes = 0;
    std::vector<uint8_t> gains, shifts, double_shifts;  // [tokens]; of shifts none where there are no gains
    std::vector<uint32_t> run_tables, run_lengths, places;
    uint8_t* levels[LEVELS_MAX] = {};       // [rows][tokens] symbols
    uint8_t* opened = nullptr;              // [rows][tokens] 1 where the symbol of the last level is not zero
    std::vector<float> factors, channel_means;
    std::vector<Part> parts;

    void fail() { job->status = BAD_JOB; }
    bool sound() const { return job->status == OK; }
};

float load_float(const uint8_t* from) {
    const uint32_t bits = load_u32(from);
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

bool read_active(const BlockJob& job, const uint8_t* from, const Segment* before, Segment& segment) {
    segment.active.resize(job.part_count);
    segment.rows = 0;
    for (uint32_t i = 0; i < job.part_count; i++) {
        const uint32_t active = load_u16(from + 2 * i);
        if (active < (before ? before->active[i] : 0) || active > job.parts[i].width) return false;
        segment.active[i] = active;
        segment.rows += active;
    }
    return true;
}

// Whether a payload is as long as it says, and all that its head says can be.
bool parse(const Payload& payload, const BlockJob& job, uint64_t tokens, const Segment* before, uint64_t means,
           Segment& segment) {
    uint64_t adaptive = 0;
    for (uint32_t i = 0; i < job.part_count && !before; i++) adaptive += job.parts[i].adaptive != 0;
    const uint64_t fixed = HEAD_BYTES + 2ull * job.part_count + 4 * adaptive;
    const uint8_t* data = payload.data;
    if (payload.bytes < fixed || data[0] > LANES_LOG2_MAX) return false;
    segment.lanes = 1u << data[0];
    for (uint32_t i = 1; i <= SIDE_RUNS; i++)
        if (data[i] >= SIDE_CLASSES && data[i] != NO_TABLE) return false;
    segment.tables[0] = data[1], segment.tables[1] = data[3], segment.tables[2] = data[2];
    if (!read_active(job, data + HEAD_BYTES, before, segment)) return false;
    segment.escape_count = load_u32(data + 4);
    const uint64_t numbers = segment.rows * tokens + (before ? 0 : means);
    if (segment.escape_count > numbers || (segment.escape_count && before)) return false;
    const uint64_t side_end = HEAD_BYTES + static_cast<uint64_t>(load_u32(data + 8));
    const uint64_t escapes_end = side_end + 4ull * segment.escape_count;
    if (side_end < fixed || escapes_end > payload.bytes) return false;
    segment.scales = data + fixed - 4 * adaptive;
    for (uint64_t i = 0; i < adaptive; i++) {
        const float scale = load_float(segment.scales + 4 * i);
        if (!(scale > 0) || std::isinf(scale)) return false;
    }
    segment.side = {data + fixed, side_end - fixed};
    segment.escapes = data + side_end;
    segment.stream = {data + escapes_end, payload.bytes - escapes_end};
    return true;
}

bool parse_block(Reading& block, const Chunk& chunk) {
    const BlockJob& job = *block.job;
    block.means_expected = 0;
    for (uint32_t i = 0; i < job.part_count; i++)
        if (job.parts[i].adaptive) block.means_expected += job.parts[i].width;
    for (uint32_t level = 0; level < chunk.levels; level++) {
        const Segment* before = level ? &block.segments[level - 1] : nullptr;
        if (!parse(job.payloads[level], job, chunk.tokens, before, block.means_expected, block.segments[level])) return false;
    }
    const Segment& base = block.segments[0];
    block.escapes.resize(base.escape_count);
    for (uint32_t i = 0; i < base.escape_count; i++) {
        block.escapes[i] = static_cast<int32_t>(load_u32(base.escapes + 4ull * i));
        if (block.escapes[i] <= -ESCAPE_MAX || block.escapes[i] >= ESCAPE_MAX) return false;
    }
    block.classes.resize(job.width);
    return true;
}

// A level's side stream among `streams`, where it has one; false where its head does not fit it.
bool describe_side(Reading& block, const Chunk& chunk, uint32_t level, std::vector<Stream>& streams) {
    Segment& segment = block.segments[level];
    const uint64_t fresh = segment.rows - (level ? block.segments[level - 1].rows : 0);
    const uint64_t means = level ? 0 : block.means_expected;
    const uint64_t gains = level == 0 && segment.tables[2] != NO_TABLE ? chunk.tokens : 0;
    const uint64_t counts[SIDE_RUNS] = {fresh, means, gains};
    block.fresh[level] = static_cast<uint32_t>(fresh);
    uint32_t runs = 0;
    for (uint32_t i = 0; i < SIDE_RUNS; i++) {
        if ((segment.tables[i] == NO_TABLE) != (counts[i] == 0)) return false;
        if (counts[i] == 0) continue;
        block.run_tables.push_back(segment.tables[i]);
        block.run_lengths.push_back(static_cast<uint32_t>(counts[i]));
        runs++;
    }
    block.side[level].resize(fresh + means + gains);
    if (runs == 0) return segment.side.bytes == 0;
    Stream stream{};
    stream.data = segment.side.data, stream.data_bytes = segment.side.bytes;
    const TableSet& tables = chunk.tables[chunk.levels];
    stream.tables = tables.slots, stream.table_count = tables.count;
    stream.runs = runs;
    stream.symbols = block.side[level].data(), stream.symbol_count = block.side[level].size();
    stream.lanes = 1, stream.context_count = 1;
    streams.push_back(stream);
    return true;
}

bool note_classes(Reading& block, uint32_t level) {
    const BlockJob& job = *block.job;
    const uint8_t* symbol = block.side[level].data();
    uint8_t* classes = block.classes.data();
    for (uint32_t i = 0; i < job.part_count; classes += job.parts[i++].width) {
        const uint32_t first = level ? block.segments[level - 1].active[i] : 0;
        for (uint32_t row = first; row < block.segments[level].active[i]; row++, symbol++) {
            const int32_t found = job.parts[i].classes[row] + *symbol - SYMBOL_ZERO;
            if (*symbol == ESCAPE || found < 0 || found >= FINE_CLASSES) return false;
            classes[row] = static_cast<uint8_t>(found);
        }
    }
    return true;
}

// What a base segment's side stream tells besides classes: means of the adaptive parts and gains.
bool note_tokens(Reading& block, uint32_t tokens) {
    const uint8_t* symbol = block.side[0].data() + block.fresh[0];
    const uint8_t* end = block.side[0].data() + block.side[0].size();
    block.means.resize(block.means_expected);
    block.mean_escapes = 0;
    for (int32_t& mean : block.means) {
        if (*symbol == ESCAPE && block.mean_escapes == block.escapes.size()) return false;
        mean = *symbol == ESCAPE ? block.escapes[block.mean_escapes++] : *symbol - SYMBOL_ZERO;
        symbol++;
    }
    block.gains.assign(tokens, 0);
    block.shifts.clear(), block.double_shifts.clear();
    for (uint32_t token = 0; symbol < end; token++, symbol++) {
        const int32_t gain = *symbol - SYMBOL_ZERO;
        if (gain < 0 || gain > GAIN_MAX) return false;
        block.gains[token] = static_cast<uint8_t>(gain);
        block.shifts.push_back(static_cast<uint8_t>(CLASSES_PER_GAIN * gain));
        block.double_shifts.push_back(static_cast<uint8_t>(2 * CLASSES_PER_GAIN * gain));
    }
    return true;
}

// The main stream of a level; `runs` says which table each row has.
Stream describe_main(Reading& block, const Chunk& chunk, uint32_t level) {
    const Segment& segment = block.segments[level];
    const uint32_t left = chunk.refinements - level;
    block.run_tables.clear();
    const uint8_t* classes = block.classes.data();
    for (uint32_t i = 0; i < block.job->part_count; classes += block.job->parts[i++].width)
        for (uint32_t row = 0; row < segment.active[i]; row++) {
            const int32_t shifted = classes[row] - static_cast<int32_t>(CLASSES_PER_OCTAVE * left);
            const uint32_t table = static_cast<uint32_t>(std::min(std::max(shifted, 0), SIDE_CLASSES - 1));
            block.run_tables.push_back(level ? 2 * table : table);
        }
    block.run_lengths.assign(segment.rows, chunk.tokens);
    Stream stream{};
    stream.data = segment.stream.data, stream.data_bytes = segment.stream.bytes;
    const TableSet& tables = chunk.tables[level];
    stream.tables = tables.slots, stream.table_count = tables.count;
    stream.search = tables.search, stream.form = tables.form;
    stream.run_tables = block.run_tables.data(), stream.run_lengths = block.run_lengths.data();
    stream.runs = static_cast<uint32_t>(segment.rows);
    stream.lanes = segment.lanes;
    stream.symbols = block.levels[level], stream.symbol_count = segment.rows * chunk.tokens;
    stream.context_count = block.shifts.empty() ? 1 : CLASSES_PER_GAIN * GAIN_MAX + 1;
    const std::vector<uint8_t>& shifts = level ? block.double_shifts : block.shifts;
    if (!shifts.empty()) stream.shifts = shifts.data(), stream.period = chunk.tokens;
    if (level) stream.contexts = block.opened, stream.context_count *= 2;
    if (level + 1 < chunk.levels) stream.opened = block.opened, stream.zero = level ? 0 : SYMBOL_ZERO;
    if (level == 0) {
        block.places.resize(block.escapes.size() - block.mean_escapes);
        stream.places = block.places.data(), stream.place_count = static_cast<uint32_t>(block.places.size());
    }
    return stream;
}

// Makes room among `opened` for the rows that become active at `level`: they are zero so far.
void grow_opened(Reading& block, uint64_t tokens, uint32_t level) {
    const Segment &before = block.segments[level - 1], &now = block.segments[level];
    uint64_t from = before.rows, to = now.rows;
    // From the last part on, as rows only move away from the first.
    for (uint32_t i = block.job->part_count; i-- > 0 && to != from;) {
        from -= before.active[i], to -= now.active[i];
        uint8_t* place = block.opened + to * tokens;
        std::memmove(place, block.opened + from * tokens, before.active[i] * tokens);
        std::memset(place + before.active[i] * tokens, 0, (now.active[i] - before.active[i]) * tokens);
    }
}

void restore_block(Reading& block, const Chunk& chunk) {
    const BlockJob& job = *block.job;
    const uint32_t tokens = chunk.tokens;
    const uint64_t adaptive = static_cast<uint64_t>(std::count_if(job.parts, job.parts + job.part_count,
                                                                  [](const ProfilePart& part) { return part.adaptive; }));
    block.factors.resize((1 + adaptive) * tokens);
    block.channel_means.resize(block.means_expected);
    block.parts.resize(job.part_count);
    float *factors = block.factors.data(), *own_factors = factors + tokens, *own_means = block.channel_means.data();
    for (uint32_t t = 0; t < tokens; t++) factors[t] = chunk.gain_factors[block.gains[t]];
    const int32_t *mean = block.means.data(), *escapes = block.escapes.data() + block.mean_escapes;
    const uint8_t* scales = block.segments[0].scales;
    uint64_t place = 0, starts[LEVELS_MAX] = {};
    uint32_t start = 0;
    for (uint32_t i = 0; i < job.part_count; i++) {
        const ProfilePart& known = job.parts[i];
        Part& part = block.parts[i];
        part = Part{};
        for (uint32_t level = 0; level < chunk.levels; level++) {
            part.symbols[level] = block.levels[level] + starts[level] * tokens;
            part.rows[level] = block.segments[level].active[i];
            starts[level] += part.rows[level];
        }
        part.escapes = escapes + place;
        for (; place < block.places.size() && block.places[place] < starts[0] * tokens; place++) part.escape_count++;
        part.basis = known.basis;
        part.scale = known.scale;
        part.factors = factors;
        part.mean = known.mean;
        part.first_mean = chunk.at_origin ? known.origin_mean : known.mean;
        part.levels = chunk.levels;
        part.left = chunk.refinements + 1 - chunk.levels;
        part.start = start;
        part.width = known.width;
        start += known.width;
        if (!known.adaptive) continue;
        const float scale = load_float(scales);
        scales += sizeof scale;
        for (uint32_t t = 0; t < tokens; t++) own_factors[t] = factors[t] * scale;
        for (uint32_t c = 0; c < known.width; c++) own_means[c] = static_cast<float>(mean[c]) * (known.scale[c] * scale);
        part.factors = own_factors;
        part.mean = part.first_mean = own_means;
        own_factors += tokens, own_means += known.width, mean += known.width;
    }
    block.job->status = restore(Restore{block.parts.data(), job.tensors, nullptr, job.part_count, job.tensor_count, tokens,
                                        job.width, chunk.product_path, OK});
}

// What a thread keeps from one chunk to the next.
struct Wave {
    Reading blocks[IN_FLIGHT_MAX];
    std::vector<Stream> streams;
    std::vector<Reading*> owners;  // of each stream
    Arena arena;
};

// Decodes the streams described; a block with one that does not is not sound any more.
void decode_described(Wave& wave, uint32_t path) {
    decode_sound(wave.streams.data(), static_cast<uint32_t>(wave.streams.size()), path);
    for (size_t i = 0; i < wave.streams.size(); i++)
        if (wave.streams[i].status != OK) wave.owners[i]->fail();
    wave.streams.clear(), wave.owners.clear();
}

void read_side(Wave& wave, uint32_t count, const Chunk& chunk) {
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++) {
        block->run_tables.clear(), block->run_lengths.clear();
        const size_t first = wave.streams.size();
        for (uint32_t level = 0; level < chunk.levels && block->sound(); level++)
            if (!describe_side(*block, chunk, level, wave.streams)) block->fail();
        if (!block->sound()) wave.streams.resize(first);
        wave.owners.resize(wave.streams.size(), block);
        uint64_t run = 0;  // only now does nothing move the runs any more
        for (size_t i = first; i < wave.streams.size(); run += wave.streams[i++].runs) {
            wave.streams[i].run_tables = block->run_tables.data() + run;
            wave.streams[i].run_lengths = block->run_lengths.data() + run;
        }
    }
    decode_described(wave, chunk.stream_path);
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++)
        for (uint32_t level = 0; level < chunk.levels && block->sound(); level++)
            if (!note_classes(*block, level) || (level == 0 && !note_tokens(*block, chunk.tokens))) block->fail();
}

bool take_room(Wave& wave, uint32_t count, const Chunk& chunk) {
    uint64_t bytes = 0;
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++) {
        if (!block->sound()) continue;
        for (uint32_t level = 0; level < chunk.levels; level++) bytes += block->segments[level].rows;
        bytes += block->segments[chunk.levels - 1].rows;
    }
    uint8_t* room = wave.arena.take(bytes * chunk.tokens);
    if (!room && bytes) return false;
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++) {
        if (!block->sound()) continue;
        for (uint32_t level = 0; level < chunk.levels; level++) {
            block->levels[level] = room;
            room += block->segments[level].rows * chunk.tokens;
        }
        block->opened = room;
        room += block->segments[chunk.levels - 1].rows * chunk.tokens;
    }
    return true;
}

void read_level(Wave& wave, uint32_t count, const Chunk& chunk, uint32_t level) {
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++) {
        if (!block->sound()) continue;
        const Segment& segment = block->segments[level];
        if (segment.rows == 0) {
            if (level == 0) block->places.clear();
            if (segment.stream.bytes || (level == 0 && block->escapes.size() != block->mean_escapes)) block->fail();
            continue;
        }
        if (level) grow_opened(*block, chunk.tokens, level);
        wave.streams.push_back(describe_main(*block, chunk, level));
        wave.owners.push_back(block);
    }
    decode_described(wave, chunk.stream_path);
    if (level || chunk.levels == 1) return;
    for (Reading* block = wave.blocks; block < wave.blocks + count; block++)
        for (size_t i = 0; block->sound() && i < block->places.size(); i++)
            block->opened[block->places[i]] = block->escapes[block->mean_escapes + i] != 0;  // encoders make none of zero
}

void decode_wave(BlockJob* jobs, uint32_t count, const Chunk& chunk) {
    thread_local Wave wave;
    for (uint32_t i = 0; i < count; i++) {
        wave.blocks[i].job = jobs + i;
        jobs[i].status = OK;
        if (!parse_block(wave.blocks[i], chunk)) jobs[i].status = BAD_JOB;
    }
    read_side(wave, count, chunk);
    if (!take_room(wave, count, chunk)) {
        for (uint32_t i = 0; i < count; i++) jobs[i].status = NO_ROOM;
        return;
    }
    for (uint32_t level = 0; level < chunk.levels; level++) read_level(wave, count, chunk, level);
    for (uint32_t i = 0; i < count; i++)
        if (jobs[i].status == OK) restore_block(wave.blocks[i], chunk);
    wave.arena.release_large();
}

}  // namespace

KVL_EXPORT void kvl_decode_blocks(BlockJob* jobs, uint32_t count, const Chunk* chunk, uint32_t threads) {
    const bool possible = chunk->levels >= 1 && chunk->levels <= chunk->refinements + 1 &&
                          chunk->refinements < LEVELS_MAX && chunk->tokens > 0;
    for (uint32_t i = 0; i < count; i++) jobs[i].status = BAD_JOB;
    if (!possible || count == 0) return;
    const uint32_t workers = std::max(1u, std::min(threads, count));
    const uint32_t share = std::min<uint32_t>(IN_FLIGHT_MAX, (count + workers - 1) / workers);
    spread((count + share - 1) / share, workers, [&](uint32_t i) {
        decode_wave(jobs + i * share, std::min(share, count - i * share), *chunk);
    });
}
