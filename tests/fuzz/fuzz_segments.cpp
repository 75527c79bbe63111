// Fuzzes blocks of layers from segments to tensors in the compiled core, in libFuzzer's form; driver.cpp runs it elsewhere.
//
// What holds for every input: nothing is read or written outside its buffers (heap blocks of their exact sizes, for the
// sanitizers to watch); segments as docs/FORMAT.md has them come back as the numbers they were made of; and whatever is
// done to a segment, all paths take or refuse it alike, and make the same of it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../../codec/entropy/coder.h"
#include "../../codec/entropy/segments.h"
#include "fuzz_input.h"

extern "C" uint32_t kvl_paths();
extern "C" void kvl_encode(Stream* streams, uint32_t count, uint32_t threads, uint32_t path);
extern "C" uint64_t kvl_packed_bytes(uint32_t width, uint32_t path);
extern "C" void kvl_pack_basis(const int8_t* basis, uint32_t width, uint32_t path, uint8_t* out);
extern "C" void kvl_decode_blocks(BlockJob* jobs, uint32_t count, const Chunk* chunk, uint32_t threads);

namespace {

enum { TABLES = SIDE_CLASSES + GAIN_MAX * CLASSES_PER_GAIN, BLOCKS_MAX = 7, PARTS_MAX = 3, NO_TABLE = 255 };
enum { SYMBOL_ZERO = 128, SIDE_TABLE_LOW = 40 };  // from that one on a table has all gains

// Tables as codec/entropy/model.py makes them, but for their frequencies.
struct Tables {
    std::vector<uint32_t> slots, entries;
    std::vector<uint16_t> search = std::vector<uint16_t>(SEARCH_CLASSES * 2 * SEARCH_ENTRIES);
    uint32_t form, count;

    explicit Tables(Form kind) : form(kind), count(TABLES * (kind == FORM_BASE ? 1 : 2)) {
        for (uint32_t table = 0; table < count; table++) {
            const uint32_t frame = std::min<uint32_t>(kind == FORM_BASE ? table : table / 2, SIDE_CLASSES - 1);
            add(kind == FORM_BASE ? base(frame) : refinement(frame, table % 2));
        }
        for (uint32_t c = 0; c < SEARCH_CLASSES; c++)
            for (uint32_t i = 0; i < SEARCH_ENTRIES; i++)
                kind == FORM_BASE ? search_base(c, i) : search_refinement(c, i);
    }
    static std::vector<uint32_t> base(uint32_t c) {
        std::vector<uint32_t> found(KVL_SYMBOLS);
        found[0] = 3;
        for (uint32_t n = 1; n <= c + 1; n++) found[SYMBOL_ZERO - n] = found[SYMBOL_ZERO + n] = 1 + 40 / n;
        uint32_t left = KVL_SLOTS;
        for (const uint32_t frequency : found) left -= frequency;
        found[SYMBOL_ZERO] = left;
        return found;
    }
    static std::vector<uint32_t> refinement(uint32_t c, uint32_t open) {
        std::vector<uint32_t> found(KVL_SYMBOLS);
        found[1] = 20 * c + 1;
        found[2] = open ? 0 : 10 * c + 7;
        found[0] = KVL_SLOTS - found[1] - found[2];
        return found;
    }
    void add(const std::vector<uint32_t>& frequencies) {
        uint32_t begun = 0;
        for (uint32_t symbol = 0; symbol < KVL_SYMBOLS; symbol++) {
            for (uint32_t i = 0; i < frequencies[symbol]; i++) slots.push_back(symbol | frequencies[symbol] << 8 | i << 20);
            entries.push_back(frequencies[symbol] | begun << 16);
            begun += frequencies[symbol];
        }
    }
    uint32_t start(uint32_t table, uint32_t symbol) const { return entries[table * KVL_SYMBOLS + symbol] >> 16; }
    void search_base(uint32_t c, uint32_t i) {
        const bool inner = i > 0 && i + 1 < SEARCH_ENTRIES;
        const uint32_t entry = entries[c * KVL_SYMBOLS + SEARCH_FIRST + i];
        search[(2 * c) * SEARCH_ENTRIES + i] = static_cast<uint16_t>(entry >> 16);
        search[(2 * c + 1) * SEARCH_ENTRIES + i] = static_cast<uint16_t>(inner ? entry & 0xFFFF : 0);
    }
    void search_refinement(uint32_t c, uint32_t i) {
        const uint32_t table = 2 * c + SHIFT_STEP * (i / 2) + i % 2;
        search[(2 * c) * SEARCH_ENTRIES + i] = static_cast<uint16_t>(start(table, 1));
        search[(2 * c + 1) * SEARCH_ENTRIES + i] = static_cast<uint16_t>(start(table, 2));
    }
    TableSet set() const { return {slots.data(), search.data(), count, form}; }
    uint8_t draw(uint32_t table, Input& in) const { return static_cast<uint8_t>(slots[table * KVL_SLOTS + in.random() % KVL_SLOTS]); }
};

using Bytes = std::vector<uint8_t>;

void put(Bytes& to, uint32_t number, int bytes) {
    for (int i = 0; i < bytes; i++) to.push_back(static_cast<uint8_t>(number >> (8 * i)));
}

// Symbols as a stream by a table and a context for each.
Bytes encoded(Bytes& symbols, std::vector<uint32_t>& tables, Bytes& contexts, const Tables& set, uint32_t lanes) {
    if (symbols.empty()) return {};
    std::vector<uint32_t> ones(tables.size(), 1);
    Bytes room(2 * symbols.size() + 8 * KVL_LANES_MAX);
    Stream stream{};
    stream.data = room.data(), stream.data_bytes = room.size();
    stream.tables = set.entries.data(), stream.table_count = set.count;
    stream.run_tables = tables.data(), stream.run_lengths = ones.data(), stream.runs = static_cast<uint32_t>(tables.size());
    stream.contexts = contexts.data(), stream.context_count = 2 * (CLASSES_PER_GAIN * GAIN_MAX + 1);
    for (uint32_t& table : tables) stream.context_count = std::min(stream.context_count, set.count - table);
    stream.symbols = symbols.data(), stream.symbol_count = symbols.size();
    stream.lanes = lanes;
    kvl_encode(&stream, 1, 1, AVX512);
    require(stream.status == OK, "what was drawn from the tables cannot be coded");
    return Bytes(room.end() - static_cast<int64_t>(stream.data_bytes), room.end());
}

struct PartBlocks {
    uint32_t width;
    bool adaptive;
    std::unique_ptr<int8_t[]> basis;
    std::unique_ptr<uint8_t[]> packed, known = nullptr;
    std::unique_ptr<float[]> scale, mean;
    Bytes classes;
    std::vector<int32_t> means;
    std::vector<int64_t> numbers;  // [width][tokens] of the levels that are read

    PartBlocks(Input& in, uint32_t tokens) : width(1 + (in.one_in(8) ? in.below(130) : in.below(12))), adaptive(in.one_in(2)) {
        if (!adaptive && in.one_in(2)) {
            basis = block<int8_t>(static_cast<uint64_t>(width) * width);
            for (uint32_t i = 0; i < width * width; i++) basis[i] = static_cast<int8_t>(in.random() % 255 - 127);
        }
        known = block<uint8_t>(width), scale = block<float>(width), mean = block<float>(width);
        std::fill_n(scale.get(), width, 1.0f);
        for (uint32_t c = 0; c < width; c++) {
            classes.push_back(static_cast<uint8_t>(in.random() % FINE_CLASSES));
            known[c] = static_cast<uint8_t>(std::min<uint32_t>(FINE_CLASSES - 1, classes[c] + in.random() % 3));
            if (adaptive) means.push_back(in.one_in(4) ? static_cast<int32_t>(in.random() % (1 << 20)) : in.byte() % 30 - 15);
        }
        numbers.assign(static_cast<size_t>(width) * tokens, 0);
    }
    ProfilePart describe(uint32_t path) {
        if (basis) {
            packed = block<uint8_t>(kvl_packed_bytes(width, path));
            kvl_pack_basis(basis.get(), width, path, packed.get());
        }
        return {packed.get(), known.get(), scale.get(), mean.get(), mean.get(), width, adaptive};
    }
    double value(uint32_t c, uint32_t t, uint32_t tokens) const {
        int64_t sum = basis ? 0 : numbers[static_cast<size_t>(c) * tokens + t];
        for (uint32_t row = 0; basis && row < width; row++)
            sum += numbers[static_cast<size_t>(row) * tokens + t] * basis[static_cast<size_t>(row) * width + c];
        return static_cast<float>(sum) + (adaptive ? static_cast<float>(means[c]) : 0.0f);
    }
};

const Tables& base_tables() {
    static const Tables made(FORM_BASE);
    return made;
}

const Tables& refinement_tables() {
    static const Tables made(FORM_REFINEMENT);
    return made;
}

// A block whose segments are made symbol by symbol.
struct BlockCase {
    uint32_t width = 0, tokens;
    std::vector<PartBlocks> parts;
    Bytes gains;
    std::vector<Bytes> segments;
    std::vector<std::unique_ptr<uint8_t[]>> payload_bytes;
    std::vector<Payload> payloads;
    std::vector<ProfilePart> described;
    std::unique_ptr<float[]> out;
    Tensor tensor{};

    BlockCase(Input& in, uint32_t count, uint32_t levels, uint32_t refinements) : tokens(count), gains(count) {
        for (uint32_t n = 1 + in.byte() % PARTS_MAX; n > 0; n--) {
            parts.emplace_back(in, tokens);
            width += parts.back().width;
        }
        const bool gained = in.one_in(2);
        for (uint8_t& gain : gains) gain = gained && in.one_in(3) ? in.byte() % (GAIN_MAX + 1) : 0;
        std::vector<uint32_t> before(parts.size());
        for (uint32_t level = 0; level < levels; level++) add_segment(in, level, refinements - level, gained, before);
        for (PartBlocks& part : parts)
            for (int64_t& number : part.numbers)
                if (levels <= refinements && number) number = 4 * number + (number > 0 ? 1 : -1);
    }

    void add_segment(Input& in, uint32_t level, uint32_t left, bool gained, std::vector<uint32_t>& before) {
        const uint32_t lanes_log2 = in.byte() % 6, side = SIDE_TABLE_LOW + in.byte() % (SIDE_CLASSES - SIDE_TABLE_LOW);
        const Tables& tables = level ? refinement_tables() : base_tables();
        Bytes differences, mean_symbols, symbols, contexts, head, mean_escapes, escapes;
        std::vector<uint32_t> run_tables;
        bool some_means = false;
        for (size_t i = 0; i < parts.size(); i++) {
            PartBlocks& part = parts[i];
            const uint32_t active = before[i] + in.below(part.width - before[i] + 1);
            put(head, active, 2);
            for (uint32_t row = before[i]; row < active; row++)
                differences.push_back(static_cast<uint8_t>(SYMBOL_ZERO + part.classes[row] - part.known[row]));
            for (const int32_t mean : part.means) {
                if (level) break;
                some_means = true;
                mean_symbols.push_back(std::abs(mean) > 15 ? 0 : static_cast<uint8_t>(SYMBOL_ZERO + mean));
                if (std::abs(mean) > 15) put(mean_escapes, static_cast<uint32_t>(mean), 4);
            }
            for (uint32_t row = 0; row < active; row++) {
                const int32_t shifted = part.classes[row] - static_cast<int32_t>(CLASSES_PER_OCTAVE * left);
                const uint32_t table = static_cast<uint32_t>(std::min(std::max(shifted, 0), SIDE_CLASSES - 1));
                for (uint32_t t = 0; t < tokens; t++) {
                    int64_t& number = part.numbers[static_cast<size_t>(row) * tokens + t];
                    const uint32_t context = (level ? 2u : 1u) * CLASSES_PER_GAIN * gains[t] + (level && number ? 1u : 0u);
                    run_tables.push_back(level ? 2 * table : table);
                    contexts.push_back(static_cast<uint8_t>(context));
                    symbols.push_back(tables.draw(run_tables.back() + context, in));
                    take(in, level, symbols.back(), number, escapes);
                }
            }
            before[i] = active;
        }
        Bytes side_symbols = differences;
        side_symbols.insert(side_symbols.end(), mean_symbols.begin(), mean_symbols.end());
        const bool tells_gains = level == 0 && gained;
        for (const uint8_t gain : gains)
            if (tells_gains) side_symbols.push_back(static_cast<uint8_t>(SYMBOL_ZERO + gain));
        std::vector<uint32_t> side_tables(side_symbols.size(), side);
        Bytes nothing(side_symbols.size());
        for (const PartBlocks& part : parts)
            if (part.adaptive && level == 0) put(head, 0x3F800000u, 4);
        const Bytes told = encoded(side_symbols, side_tables, nothing, base_tables(), 1);
        escapes.insert(escapes.begin(), mean_escapes.begin(), mean_escapes.end());
        Bytes segment = {static_cast<uint8_t>(lanes_log2), static_cast<uint8_t>(differences.empty() ? NO_TABLE : side),
                         static_cast<uint8_t>(tells_gains ? side : NO_TABLE), static_cast<uint8_t>(some_means ? side : NO_TABLE)};
        put(segment, static_cast<uint32_t>(escapes.size() / 4), 4);
        put(segment, static_cast<uint32_t>(head.size() + told.size()), 4);
        for (const Bytes& piece : {head, told, escapes, encoded(symbols, run_tables, contexts, tables, 1u << lanes_log2)})
            segment.insert(segment.end(), piece.begin(), piece.end());
        segments.push_back(segment);
    }

    static void take(Input& in, uint32_t level, uint8_t symbol, int64_t& number, Bytes& escapes) {
        if (level == 0 && symbol == 0) {
            number = static_cast<int32_t>(in.random() % (2u * ESCAPE_MAX - 1)) - (ESCAPE_MAX - 1);
            if (in.one_in(2)) number %= 3;
            put(escapes, static_cast<uint32_t>(number), 4);
        } else if (level == 0) {
            number = symbol - SYMBOL_ZERO;
        } else if (number == 0) {
            number = symbol == 2 ? -1 : symbol;
        } else {
            number = 2 * number + (number < 0 ? -symbol : symbol);
        }
    }

    void damage(Input& in) {
        Bytes& segment = segments[in.byte() % segments.size()];
        for (uint32_t n = 1 + in.byte() % 3; n > 0; n--) {
            const size_t place = segment.empty() ? 0 : (in.one_in(2) ? in.byte() % 32u : in.random()) % segment.size();
            switch (in.byte() % 5) {
                case 0: if (!segment.empty()) segment[place] ^= static_cast<uint8_t>(1u << in.byte() % 8); break;
                case 1: if (!segment.empty()) segment[place] = in.one_in(2) ? 255 : in.byte(); break;
                case 2: segment.resize(place); break;
                case 3: segment.insert(segment.end(), 1 + in.byte() % 40, in.byte()); break;
                case 4: for (size_t i = place; i < std::min(segment.size(), place + 4); i++) segment[i] = in.byte(); break;
            }
        }
    }

    BlockJob describe(uint32_t path) {
        payload_bytes.clear(), payloads.clear(), described.clear();
        for (const Bytes& segment : segments) {
            payload_bytes.push_back(block<uint8_t>(segment.size()));
            std::copy(segment.begin(), segment.end(), payload_bytes.back().get());
            payloads.push_back({payload_bytes.back().get(), segment.size()});
        }
        for (PartBlocks& part : parts) described.push_back(part.describe(path));
        out = block<float>(static_cast<uint64_t>(tokens) * width);
        tensor = Tensor{};
        tensor.data = reinterpret_cast<uint8_t*>(out.get());
        tensor.token_stride = static_cast<int64_t>(sizeof(float) * width);
        tensor.heads = 1, tensor.dim = width;
        return {described.data(), payloads.data(), &tensor, static_cast<uint32_t>(parts.size()), 1, width, OK};
    }

    void check() const {
        for (uint32_t t = 0; t < tokens; t++) {
            uint32_t c = 0;
            for (const PartBlocks& part : parts)
                for (uint32_t own = 0; own < part.width; own++, c++)
                    require(out[static_cast<size_t>(t) * width + c] == static_cast<float>(part.value(own, t, tokens)),
                            "a channel is not what was coded");
        }
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    const uint32_t refinements = in.byte() % LEVELS_MAX, levels = 1 + in.byte() % (refinements + 1);
    const uint32_t tokens = 1 + (in.one_in(8) ? in.below(100) : in.below(20)), threads = in.one_in(16) ? 2 : 1;
    std::vector<BlockCase> blocks;
    std::vector<bool> intact;
    for (uint32_t n = 1 + (in.one_in(4) ? in.byte() % BLOCKS_MAX : in.byte() % 2); n > 0; n--) {
        blocks.emplace_back(in, tokens, levels, refinements);
        intact.push_back(!in.one_in(2));
        if (!intact.back()) blocks.back().damage(in);
    }
    std::vector<TableSet> sets(levels + 1, refinement_tables().set());
    sets.front() = sets.back() = base_tables().set();
    const std::vector<float> ones(GAIN_MAX + 1, 1.0f);
    std::vector<int32_t> statuses;
    std::vector<std::vector<float>> first;
    for (uint32_t path = SCALAR; path <= AVX512_VBMI2; path++) {
        if (!(kvl_paths() >> path & 1)) continue;
        const Chunk chunk{sets.data(), ones.data(), levels, refinements, tokens, in.end > in.at, path, path};
        std::vector<BlockJob> jobs;
        for (BlockCase& item : blocks) jobs.push_back(item.describe(path));
        kvl_decode_blocks(jobs.data(), static_cast<uint32_t>(jobs.size()), &chunk, threads);
        for (size_t i = 0; i < blocks.size(); i++) {
            require(!intact[i] || jobs[i].status == OK, "an intact block is refused");
            if (intact[i]) blocks[i].check();
            std::vector<float> numbers(blocks[i].out.get(), blocks[i].out.get() + tokens * blocks[i].width);
            if (path == SCALAR) statuses.push_back(jobs[i].status), first.push_back(numbers);
            require(jobs[i].status == statuses[i], "paths take different segments");
            require(statuses[i] != OK || !std::memcmp(numbers.data(), first[i].data(), 4 * numbers.size()), "paths differ");
        }
    }
    return 0;
}
