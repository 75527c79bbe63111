// Fuzzes the loops of the exact level in the compiled core, in libFuzzer's form; driver.cpp runs it elsewhere.
//
// What holds for every input: nothing is read or written outside its buffers (each is a heap block of its exact size,
// for the sanitizers to watch); tables that are read at all fill their look-ups; and what was split, clustered and
// packed comes back through unpacking and joining, bit for bit.
#include <algorithm>
#include <cstring>

#include "../../codec/entropy/planes.h"
#include "../../codec/entropy/rans.h"
#include "fuzz_input.h"

extern "C" void kvl_split(Split* jobs, uint32_t count, uint32_t threads);
extern "C" void kvl_cluster(Cluster* jobs, uint32_t count, uint32_t threads);
extern "C" void kvl_unpack(Unpack* jobs, uint32_t count, uint32_t threads);
extern "C" void kvl_join(Join* jobs, uint32_t count, uint32_t threads);

namespace {

uint32_t width_of(uint32_t form) { return form == FORM_BYTE ? 1 : form == FORM_FLOAT32 ? 4 : 2; }

uint64_t rest_bytes_of(uint32_t form, uint64_t values) {
    const uint64_t packed = (values + REST_BLOCK_VALUES - 1) / REST_BLOCK_VALUES * REST_BLOCK_BYTES;
    return form == FORM_BYTE ? 0 : form == FORM_FLOAT16 ? values : form == FORM_BFLOAT16 ? packed : packed + 2 * values;
}

void check_slots(const Unpack& job) {
    for (uint32_t k = 0; k < job.tables; k++) {
        uint32_t total = 0;
        for (uint32_t s = 0; s < KVL_SYMBOLS; s++) total += job.frequencies[k * KVL_SYMBOLS + s];
        require(total == KVL_SLOTS, "frequencies do not add up");
        for (uint32_t i = 0; i < KVL_SLOTS; i++) {
            const uint32_t slot = job.slots[k * KVL_SLOTS + i];
            const uint32_t frequency = job.frequencies[k * KVL_SYMBOLS + kvl_slot_symbol(slot)];
            require(kvl_slot_frequency(slot) == frequency && kvl_slot_bias(slot) < frequency, "a slot is wrong");
        }
    }
}

void fuzz_unpack(Input& input) {
    const uint32_t channels = 1 + input.below(70), tables = input.below(18), room = tables ? tables : 1;
    const uint64_t bytes = input.below(300);
    auto data = block<uint8_t>(bytes);
    auto places = block<uint32_t>(channels);
    auto runs = block<uint32_t>(room);
    auto frequencies = block<uint16_t>(room * KVL_SYMBOLS);
    auto slots = block<uint32_t>(room * KVL_SLOTS);
    for (uint64_t i = 0; i < bytes; i++) data[i] = input.byte();
    if (input.byte() & 1)  // tables that fit are rare among random bytes
        for (uint32_t k = 0; 2 * k + 1 < bytes && k < tables; k++) data[2 * k] &= 31, data[2 * k + 1] &= 15;
    Unpack job{data.get(), bytes, places.get(), runs.get(), frequencies.get(), slots.get(), 0,
               channels,   7,     tables,       input.below(5), OK};
    kvl_unpack(&job, 1, 1);
    if (job.status != OK) return;
    require(job.bytes_used <= bytes, "more bytes were used than there are");
    for (uint32_t c = 0; c < channels; c++) require(job.places[c] < channels, "a channel has no row");
    check_slots(job);
}

// Symbols and rests of any bytes, as a hostile stream decodes to, to a tensor of any strides: dense, in a longer cache,
// a slice of wider heads, backwards.
void fuzz_join(Input& input) {
    const uint32_t form = input.below(4), heads = 1 + input.below(3), tokens = 1 + input.below(80);
    const uint32_t head_dim = 1 + (input.byte() < 8 ? input.below(300) : input.below(40)), channels = heads * head_dim;
    const uint64_t values = static_cast<uint64_t>(channels) * tokens, width = width_of(form);
    auto symbols = block<uint8_t>(values), rest = block<uint8_t>(rest_bytes_of(form, values));
    auto places = block<uint32_t>(channels);
    for (uint64_t i = 0; i < values; i++) symbols[i] = input.byte();
    for (uint64_t i = 0; i < rest_bytes_of(form, values); i++) rest[i] = static_cast<uint8_t>(input.random());
    for (uint32_t i = 0; i < channels; i++) places[i] = i;
    for (uint32_t i = channels - 1; i > 0; i--) std::swap(places[i], places[input.random() % (i + 1)]);
    const bool windowed = form == FORM_BFLOAT16 || form == FORM_FLOAT32;
    const uint64_t step = width * (1 + input.below(2)), row = step * (head_dim - 1) + width;
    const uint64_t gap = width * input.below(4), head = (row + gap) * tokens + gap;
    const uint64_t bytes = head * (heads - 1) + (row + gap) * (tokens - 1) + row;
    auto memory = block<uint32_t>((bytes + 3) / 4);
    uint8_t* out = reinterpret_cast<uint8_t*>(memory.get());
    std::memset(out, 0xA5, (bytes + 3) / 4 * 4);
    Join job{symbols.get(), places.get(), rest.get(), out, static_cast<int64_t>(head), static_cast<int64_t>(row + gap),
             static_cast<int64_t>(step), heads, tokens, head_dim, form, windowed ? input.below(512 - WINDOW + 1) : 0, OK};
    if (input.byte() & 1) job.out += head * (heads - 1), job.head_stride = -job.head_stride;
    if (input.byte() & 1) job.out += (row + gap) * (tokens - 1), job.token_stride = -job.token_stride;
    kvl_join(&job, 1, 1);
    require(job.status == OK, "nothing was joined");
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t d = 0; d < head_dim; d++) {
                uint8_t* at = job.out + h * job.head_stride + t * job.token_stride + d * job.value_stride;
                const uint8_t symbol = symbols[static_cast<uint64_t>(places[h * head_dim + d]) * tokens + t];
                require(at[width - 1] >> 7 == (symbol & 1), "a value has another sign than its symbol");
                std::memset(at, 0xA5, width);
            }
    for (uint64_t i = 0; i < (bytes + 3) / 4 * 4; i++) require(out[i] == 0xA5, "the gaps of a cache were written to");
}

// Values near each other, with a few of any bits: zeros, infinities, NaN.
void fill_values(Input& input, uint8_t* values, uint64_t count, uint32_t width) {
    const uint8_t high = input.byte(), odd = input.byte();
    for (uint64_t i = 0; i < count; i++)
        for (uint32_t b = 0; b < width; b++)
            values[i * width + b] = b + 1 == width && input.byte() > odd ? static_cast<uint8_t>(high ^ (input.byte() & 0x81))
                                                                        : input.byte();
}

void fuzz_round_trip(Input& input) {
    const uint32_t form = input.below(4), heads = 1 + input.below(3), tokens = 1 + input.below(80);
    const uint32_t head_dim = 1 + (input.byte() < 8 ? input.below(300) : input.below(40));
    const uint32_t width = width_of(form), channels = heads * head_dim;
    const uint64_t values = static_cast<uint64_t>(channels) * tokens, rest_bytes = rest_bytes_of(form, values);
    const uint64_t gap = input.below(2) * width * input.below(4), row = static_cast<uint64_t>(head_dim) * width;
    const uint64_t held = heads * tokens * (row + gap) - gap;
    auto source = block<uint32_t>((held + 3) / 4);  // aligned for a float32
    auto symbols = block<uint8_t>(values), by_table = block<uint8_t>(values), rest = block<uint8_t>(rest_bytes);
    auto counts = block<uint16_t>(channels * 256ull);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(source.get());
    fill_values(input, bytes, held / width, width);
    const int64_t step = static_cast<int64_t>(row + gap), turn = input.below(2) ? -1 : 1;
    const uint8_t* first = turn < 0 ? bytes + step * (heads * static_cast<int64_t>(tokens) - 1) : bytes;  // or backwards
    Split split{first, symbols.get(), rest.get(), counts.get(), turn * step * tokens, turn * step, heads, tokens, head_dim,
                form, 0, OK};
    kvl_split(&split, 1, 1);
    require(split.status == OK, "nothing was split");

    auto log2_small = block<uint16_t>(4096), log2_mantissa = block<uint16_t>(256);
    for (uint32_t i = 1; i < 4096; i++)
        for (uint32_t x = i; x > 1; x /= 2) log2_small[i] = static_cast<uint16_t>(log2_small[i] + 64);
    auto written = block<uint8_t>(channels + 16 * 256), frequencies = block<uint8_t>(16 * 512);
    auto runs = block<uint32_t>(16);
    Cluster cluster{counts.get(), log2_small.get(), log2_mantissa.get(), symbols.get(), by_table.get(), written.get(),
                    reinterpret_cast<uint16_t*>(frequencies.get()), runs.get(), channels, tokens, 0, 0, 0, OK};
    kvl_cluster(&cluster, 1, 1);
    require(cluster.status == OK && cluster.tables_used >= 1 && cluster.tables_used <= 16, "nothing was clustered");
    require(cluster.packed_bytes <= channels + 16 * 256, "the tables outgrew their room");

    auto data = block<uint8_t>(cluster.packed_bytes);
    std::memcpy(data.get(), written.get(), cluster.packed_bytes);
    auto places = block<uint32_t>(channels), runs_read = block<uint32_t>(cluster.tables_used);
    auto frequencies_read = block<uint16_t>(cluster.tables_used * KVL_SYMBOLS);
    auto slots = block<uint32_t>(cluster.tables_used * KVL_SLOTS);
    Unpack unpack{data.get(), cluster.packed_bytes, places.get(), runs_read.get(), frequencies_read.get(), slots.get(), 0,
                  channels, tokens, cluster.tables_used, cluster.span_log2, OK};
    kvl_unpack(&unpack, 1, 1);
    require(unpack.status == OK && unpack.bytes_used == cluster.packed_bytes, "tables do not read as written");
    require(!std::memcmp(frequencies_read.get(), frequencies.get(), cluster.tables_used * 512), "other frequencies");
    check_slots(unpack);

    auto joined = block<uint32_t>((values * width + 3) / 4);
    uint8_t* out = reinterpret_cast<uint8_t*>(joined.get());
    const int64_t dense = static_cast<int64_t>(row);
    Join join{by_table.get(), places.get(), rest.get(), out, dense * tokens, dense, width, heads, tokens, head_dim,
              form, split.base, OK};
    kvl_join(&join, 1, 1);
    require(join.status == OK, "nothing was joined");
    const bool windowed = form == FORM_BFLOAT16 || form == FORM_FLOAT32;
    for (uint64_t i = 0; i < values; i++) {
        const uint64_t channel = i / head_dim / tokens * head_dim + i % head_dim, token = i / head_dim % tokens;
        if (windowed && symbols[channel * tokens + token] < 2) continue;  // an escape: the caller puts it in
        const uint8_t* from = first + turn * step * static_cast<int64_t>(i / head_dim) + i % head_dim * width;
        require(!std::memcmp(out + i * width, from, width), "a value came back changed");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    switch (input.byte() & 7) {
        case 0:
        case 1: fuzz_round_trip(input); break;
        case 2: fuzz_join(input); break;
        default: fuzz_unpack(input); break;
    }
    return 0;
}
