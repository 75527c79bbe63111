// Fuzzes the entropy coder of the compiled core, in libFuzzer's form.
//
// What holds for every input: no path reads or writes outside its buffers (each is a heap block of its exact size, for
// the sanitizers to watch); all paths give the same status, and the same symbols or bytes where it is OK; and what was
// encoded with proper tables decodes to itself.
//
// `make fuzz` builds it with driver.cpp, for any compiler. With clang: clang++ -std=c++17 -g -O1
// -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_rans.cpp codec/entropy/rans*.cpp -o fuzz_rans
#include <algorithm>
#include <cstring>
#include <vector>

#include "../../codec/entropy/coder.h"
#include "fuzz_input.h"

extern "C" uint32_t kvl_paths();
extern "C" void kvl_decode(Stream* streams, uint32_t count, uint32_t threads, uint32_t path);
extern "C" void kvl_encode(Stream* streams, uint32_t count, uint32_t threads, uint32_t path);

namespace {

enum { STREAMS_MAX = 5, TABLES = 3, RUNS_MAX = 6, RUN_SYMBOLS_MAX = 400 };

// A heap block of exactly `count` items, also of none.
template <class Item>
struct Block {
    std::unique_ptr<Item[]> items;
    size_t count;

    explicit Block(size_t n) : items(new Item[n]()), count(n) {}
    Item* data() { return items.get(); }
    Item& operator[](size_t i) { return items[i]; }
};

struct Tables {
    Block<uint32_t> decoder{TABLES * KVL_SLOTS};
    Block<uint32_t> encoder{TABLES * KVL_SYMBOLS};
    bool proper;

    explicit Tables(Input& in) : proper(!in.one_in(4)) {
        for (int table = 0; table < TABLES; table++) {
            uint32_t* slots = decoder.data() + table * KVL_SLOTS;
            uint32_t* entries = encoder.data() + table * KVL_SYMBOLS;
            if (!proper) {
                for (int i = 0; i < KVL_SLOTS; i++) slots[i] = in.random() << 1;
                const uint32_t kept = in.one_in(2) ? 0xFFFFFFFFu : 0xFFFF0FFFu;
                for (int i = 0; i < KVL_SYMBOLS; i++) entries[i] = in.random() << 1 & kept;
                continue;
            }
            uint32_t cumulative = 0;
            for (uint32_t symbol = 0; cumulative < KVL_SLOTS; symbol++) {
                const uint32_t left = KVL_SLOTS - cumulative;
                uint32_t frequency = symbol == KVL_SYMBOLS - 1 ? left : in.below(left + 1) >> in.byte() % 8;
                if (frequency == KVL_SLOTS) frequency--;
                for (uint32_t k = 0; k < frequency; k++) slots[cumulative + k] = symbol | frequency << 8 | k << 20;
                entries[symbol] = frequency | cumulative << 16;
                cumulative += frequency;
            }
        }
    }
};

// One job's arrays, and the symbols that its tables can code.
struct Job {
    Block<uint32_t> run_tables, run_lengths;
    Block<uint8_t> contexts, symbols;
    Stream stream{};

    static size_t total(Block<uint32_t>& lengths) {
        size_t sum = 0;
        for (size_t i = 0; i < lengths.count; i++) sum += lengths[i];
        return sum;
    }
    static Block<uint32_t> lengths_of(Input& in, size_t runs) {
        Block<uint32_t> lengths(runs);
        for (size_t i = 0; i < runs; i++) lengths[i] = in.one_in(2) ? 32 * (in.byte() % 12) : in.below(RUN_SYMBOLS_MAX);
        return lengths;
    }

    Job(Input& in, Tables& tables, uint32_t lanes, uint32_t context_count)
        : run_tables(in.byte() % RUNS_MAX),
          run_lengths(lengths_of(in, run_tables.count)),
          contexts(total(run_lengths)),
          symbols(contexts.count) {
        const bool marked = context_count > 1 || in.one_in(8);
        for (size_t i = 0; i < run_tables.count; i++) run_tables[i] = in.byte() % (TABLES + 1 - context_count);
        size_t place = 0;
        for (size_t run = 0; run < run_tables.count; run++)
            for (uint32_t i = 0; i < run_lengths[run]; i++, place++) {
                contexts[place] = marked ? static_cast<uint8_t>(in.random() % context_count) : 0;
                const uint32_t table = run_tables[run] + contexts[place];
                symbols[place] = static_cast<uint8_t>(tables.decoder[table * KVL_SLOTS + in.random() % KVL_SLOTS]);
            }
        stream.run_tables = run_tables.data();
        stream.run_lengths = run_lengths.data();
        stream.contexts = marked ? contexts.data() : nullptr;
        stream.symbol_count = symbols.count;
        stream.runs = static_cast<uint32_t>(run_tables.count);
        stream.lanes = lanes;
        stream.table_count = TABLES;
        stream.context_count = context_count;
        if (in.one_in(32)) spoil(in);
    }

    // Makes the description one that must be refused.
    void spoil(Input& in) {
        switch (in.byte() % 5) {
            case 0: stream.lanes = in.one_in(2) ? 0 : 33 + in.below(1000); break;
            case 1: stream.symbol_count++; break;
            case 2: stream.context_count = in.one_in(2) ? 0 : 4 + in.byte(); break;
            case 3: {
                const uint32_t too_high = in.one_in(2) ? 0u - 1 - in.byte() % 4 : TABLES + 1 - stream.context_count;
                if (stream.runs) run_tables[in.byte() % stream.runs] = too_high;
                break;
            }
            case 4: if (stream.symbol_count) contexts[in.random() % contexts.count] = 250; break;
        }
    }
};

std::vector<uint8_t> encode_alike(Job& job, Tables& tables, Input& in) {
    const size_t room = in.one_in(16) ? in.below(200) : 2 * job.symbols.count + 8 * KVL_LANES_MAX;
    std::vector<uint8_t> first;
    int32_t status = OK;
    for (uint32_t path = 0; path <= AVX512_VBMI2; path++) {
        if (!(kvl_paths() >> path & 1)) continue;
        Block<uint8_t> buffer(room), symbols(job.symbols.count);
        if (symbols.count) std::memcpy(symbols.data(), job.symbols.data(), symbols.count);
        Stream stream = job.stream;
        stream.tables = tables.encoder.data();
        stream.symbols = symbols.data();
        stream.data = buffer.data();
        stream.data_bytes = room;
        kvl_encode(&stream, 1, 1, path);
        require(path == 0 || stream.status == status, "paths encode to different statuses");
        status = stream.status;
        if (status != OK) continue;
        const uint8_t* end = buffer.data() + room;
        std::vector<uint8_t> bytes(end - stream.data_bytes, end);
        require(path == 0 || bytes == first, "paths encode to different bytes");
        first = bytes;
    }
    return first;
}

void damage(std::vector<uint8_t>& bytes, Input& in) {
    for (uint32_t n = in.byte() % 4; n > 0 && !bytes.empty(); n--) {
        const size_t place = in.random() % bytes.size();
        switch (in.byte() % 4) {
            case 0: bytes[place] ^= static_cast<uint8_t>(1u << in.byte() % 8); break;
            case 1: bytes[place] = in.byte(); break;
            case 2: bytes.resize(place); break;
            case 3: bytes.insert(bytes.end(), 1 + in.byte() % 80, in.byte()); break;
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    Tables tables(in);
    const uint32_t count = 1 + in.byte() % STREAMS_MAX;
    const uint32_t common_lanes = in.one_in(2) ? 1u << in.byte() % 6 : 1 + in.byte() % KVL_LANES_MAX;
    std::vector<Job> jobs;
    std::vector<Block<uint8_t>> streams;
    std::vector<bool> intact;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t lanes = in.one_in(8) ? 1 + in.byte() % KVL_LANES_MAX : common_lanes;
        jobs.emplace_back(in, tables, lanes, 1 + in.byte() % TABLES);
        std::vector<uint8_t> bytes = encode_alike(jobs.back(), tables, in);
        const bool coded = !bytes.empty() && tables.proper;
        const std::vector<uint8_t> before = bytes;
        if (bytes.empty() || in.one_in(16)) {
            bytes.resize(in.below(600));
            for (uint8_t& byte : bytes) byte = in.byte();
        }
        damage(bytes, in);
        intact.push_back(coded && bytes == before);
        streams.emplace_back(bytes.size());
        if (!bytes.empty()) std::memcpy(streams.back().data(), bytes.data(), bytes.size());
    }
    std::vector<std::vector<uint8_t>> first;
    std::vector<int32_t> statuses;
    for (uint32_t path = 0; path <= AVX512_VBMI2; path++) {
        if (!(kvl_paths() >> path & 1)) continue;
        std::vector<Block<uint8_t>> outputs;
        std::vector<Stream> batch;
        for (uint32_t i = 0; i < count; i++) {
            outputs.emplace_back(jobs[i].symbols.count);
            batch.push_back(jobs[i].stream);
            batch[i].tables = tables.decoder.data();
            batch[i].data = streams[i].data();
            batch[i].data_bytes = streams[i].count;
            batch[i].symbols = outputs[i].data();
        }
        kvl_decode(batch.data(), count, 1, path);
        for (uint32_t i = 0; i < count; i++) {
            std::vector<uint8_t> symbols(outputs[i].data(), outputs[i].data() + outputs[i].count);
            if (intact[i]) {
                require(batch[i].status == OK, "an intact stream is refused");
                require(std::equal(symbols.begin(), symbols.end(), jobs[i].symbols.data()), "symbols changed");
            }
            if (path == 0) {
                statuses.push_back(batch[i].status);
                first.push_back(symbols);
            }
            require(batch[i].status == statuses[i], "paths decode to different statuses");
            require(statuses[i] != OK || symbols == first[i], "paths decode to different symbols");
        }
    }
    return 0;
}
