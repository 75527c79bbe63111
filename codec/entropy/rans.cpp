// The entropy coder: its scalar code, the choice of execution, and the order in which streams are taken.
//
// A stream of hostile bytes ends in a status, never outside its buffers.
#include "coder.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#define KVL_TARGET
#include "groups.h"
#include "spread.h"

namespace {

enum { TABLES_MAX = 1 << 16 };  // as in stream.py; slot indices stay within 31 bits

struct Reciprocals {
    uint64_t of_frequency[KVL_SLOTS];

    constexpr Reciprocals() : of_frequency() {
        for (uint64_t f = 1; f < KVL_SLOTS; f++) of_frequency[f] = ((1ull << KVL_RECIPROCAL_BITS) + f - 1) / f;
    }
};

constexpr Reciprocals RECIPROCALS;

void store_u32(uint8_t* p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = static_cast<uint8_t>(v >> (8 * i));
}

KVL_EVERY_CPU uint32_t largest(const uint8_t* bytes, uint64_t count) {
    uint8_t most = 0;
    for (uint64_t i = 0; i < count; i++) most = bytes[i] > most ? bytes[i] : most;
    return most;
}

// What the next level's contexts are: of a level without any, and in the place of this level's.
KVL_EVERY_CPU void note_opened(const uint8_t* __restrict symbols, uint8_t zero, uint64_t count,
                               uint8_t* __restrict opened) {
    for (uint64_t i = 0; i < count; i++) opened[i] = symbols[i] != zero;
}

KVL_EVERY_CPU void add_opened(const uint8_t* __restrict symbols, uint8_t zero, uint64_t count,
                              uint8_t* __restrict opened) {
    for (uint64_t i = 0; i < count; i++) opened[i] = (opened[i] != 0) | (symbols[i] != zero);
}

// Notes what a stream that was decoded is asked besides its symbols.
Status note(const Stream& s) {
    const uint8_t zero = static_cast<uint8_t>(s.zero);
    if (s.opened && !s.contexts) note_opened(s.symbols, zero, s.symbol_count, s.opened);
    if (s.opened && s.contexts) {
        if (s.opened != s.contexts) std::memcpy(s.opened, s.contexts, s.symbol_count);
        add_opened(s.symbols, zero, s.symbol_count, s.opened);
    }
    if (!s.places) return OK;
    uint32_t found = 0;
    for (uint64_t at = 0; at < s.symbol_count; at++, found++) {
        const void* hit = std::memchr(s.symbols + at, 0, s.symbol_count - at);
        if (!hit) break;
        if (found == s.place_count) return BAD_ESCAPES;
        at = static_cast<uint64_t>(static_cast<const uint8_t*>(hit) - s.symbols);
        s.places[found] = static_cast<uint32_t>(at);
    }
    return found == s.place_count ? OK : BAD_ESCAPES;
}

bool job_is_sound(const Stream& s) {
    if (s.lanes == 0 || s.lanes > KVL_LANES_MAX || s.table_count > TABLES_MAX) return false;
    if (s.context_count == 0 || s.context_count > KVL_SYMBOLS) return false;
    uint64_t total = 0;
    for (uint32_t r = 0; r < s.runs; r++) {
        if (static_cast<uint64_t>(s.run_tables[r]) + s.context_count > s.table_count) return false;
        total += s.run_lengths[r];
    }
    if (total != s.symbol_count || (s.shifts && s.period == 0)) return false;
    const uint32_t shift_max = s.shifts ? largest(s.shifts, s.period) : 0u;
    return shift_max < s.context_count &&
           (!s.contexts || largest(s.contexts, s.symbol_count) < s.context_count - shift_max);
}

// Whether a sound stream is of the form it says.
bool form_holds(const Stream& s) {
    uint32_t tables = 0;
    for (uint32_t r = 0; r < s.runs; r++) {
        if (s.form == FORM_REFINEMENT && s.run_tables[r] % 2) return false;
        tables = std::max(tables, s.run_tables[r] >> (s.form == FORM_REFINEMENT));
    }
    if (tables >= SEARCH_CLASSES || !s.search) return false;
    if (s.form == FORM_BASE) return !s.contexts;
    for (uint32_t i = 0; s.shifts && i < s.period; i++)
        if (s.shifts[i] % SHIFT_STEP || s.shifts[i] >= SHIFT_STEP * SEARCH_ENTRIES / 2) return false;
    return s.contexts && largest(s.contexts, s.symbol_count) < 2;
}

// Base symbols are searched for with one table for all lanes: not worth it where many tokens have another.
[[maybe_unused]] bool mostly_shifted(const Stream& s) {
    uint32_t shifted = 0;
    for (uint32_t i = 0; s.shifts && i < s.period; i++) shifted += s.shifts[i] != 0;
    return 8 * shifted > s.period;
}

// Nor where many lie beyond the symbols searched for: more than BEYOND_MAX of a table's slots.
[[maybe_unused]] bool mostly_near(const Stream& s) {
    enum { BEYOND_MAX = 400 };
    uint64_t beyond = 0;
    for (uint32_t r = 0; r < s.runs; r++) {
        const uint64_t table = std::min<uint32_t>(s.run_tables[r], SEARCH_CLASSES - 1);
        const uint16_t* starts = s.search + table * 2 * SEARCH_ENTRIES;
        beyond += static_cast<uint64_t>(s.run_lengths[r]) * (starts[1] + KVL_SLOTS - starts[SEARCH_ENTRIES - 1]);
    }
    return beyond <= BEYOND_MAX * s.symbol_count;
}

bool has_code(uint32_t entry) { return (entry & 0xFFFFu) - 1 < KVL_SLOTS - 1; }

// Writes the state's lower half in front of `at`, and keeps it there where the state must give it up.
uint8_t* give_up_word(uint32_t& state, uint32_t entry, uint8_t* at) {
    at[-2] = static_cast<uint8_t>(state);
    at[-1] = static_cast<uint8_t>(state >> 8);
    const uint32_t full = 0u - static_cast<uint32_t>(kvl_must_flush(state, entry & 0xFFFFu));
    state ^= (state ^ state >> 16) & full;
    return at - (full & 2);
}

uint32_t encode_entry(uint32_t state, uint32_t entry) {
    const uint32_t frequency = entry & 0xFFFFu;
    return kvl_encode_step_by(state, frequency, entry >> 16, RECIPROCALS.of_frequency[frequency]);
}

// The states of one stream, one lane after the other.
struct ScalarDecoder {
    uint32_t states[KVL_LANES_MAX];
    uint32_t lanes;
    const uint8_t* at;
    const uint8_t* limit;
    const uint8_t* contexts;
    ShiftCursor shifts;
    const uint32_t* slots;
    uint8_t* symbols;

    void load(const Flight& f) {
        shifts = f.shifts;
        lanes = f.stream->lanes;
        std::memcpy(states, f.states, sizeof states);
        at = f.at;
        limit = f.limit;
        contexts = f.stream->contexts ? f.stream->contexts + f.done : nullptr;
        symbols = f.stream->symbols + f.done;
    }

    void store(Flight& f) const {
        std::memcpy(f.states, states, sizeof states);
        f.at = at;
        f.shifts = shifts;
    }

    void enter(const RunCursor& runs) { slots = runs.slots(); }

    // A symbol of every lane by the table of the run entered.
    void group() { group(slots, nullptr); }

    // `bases` holds the first slot of each lane's table, counted from `table`; null where all use `table`.
    void group(const uint32_t* table, const uint32_t* bases) {
        const uint8_t* from = at;
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const uint32_t state = states[lane];
            uint32_t index = state & (KVL_SLOTS - 1);
            if (bases) index += bases[lane];
            if (contexts) index += static_cast<uint32_t>(contexts[lane]) << KVL_PROBABILITY_BITS;
            if (shifts.at) index += static_cast<uint32_t>(shifts.at[lane]) << KVL_PROBABILITY_BITS;
            const uint32_t slot = table[index];
            symbols[lane] = static_cast<uint8_t>(kvl_slot_symbol(slot));
            const uint32_t next = kvl_decode_step(state, slot);
            const uint32_t refilled = kvl_refill(next, load_u16(from));
            // A mask, as compilers make a branch of a choice here, and no one foresees which way it goes.
            const uint32_t low = 0u - static_cast<uint32_t>(next < KVL_STATE_LOW);
            states[lane] = next ^ ((next ^ refilled) & low);
            from += low & 2;
        }
        at = from;
        symbols += lanes;
        if (contexts) contexts += lanes;
        if (shifts.at) shifts.advance(lanes);
    }
};

struct ScalarEncoder {
    uint32_t states[KVL_LANES_MAX];
    uint32_t lanes;
    uint8_t* at;

    void load(const Ascent& a) {
        lanes = a.stream->lanes;
        std::memcpy(states, a.states, sizeof states);
        at = a.at;
    }

    void store(Ascent& a) const {
        std::memcpy(a.states, states, sizeof states);
        a.at = at;
    }

    // Whether every symbol has a code; else nothing is changed. `bases` as above, of entries.
    bool group(const uint32_t* table, const uint32_t* bases, const uint8_t* symbols, const uint8_t* contexts) {
        uint32_t entries[KVL_LANES_MAX];
        bool bad = false;
        for (uint32_t lane = 0; lane < lanes; lane++) {
            uint32_t index = symbols[lane];
            if (bases) index += bases[lane];
            if (contexts) index += static_cast<uint32_t>(contexts[lane]) * KVL_SYMBOLS;
            entries[lane] = table[index];
            bad |= !has_code(entries[lane]);
        }
        if (bad) return false;
        uint8_t* to = at;
        for (uint32_t lane = lanes; lane-- > 0;) {
            to = give_up_word(states[lane], entries[lane], to);
            states[lane] = encode_entry(states[lane], entries[lane]);
        }
        at = to;
        return true;
    }
};

bool cpu_has(Path path) {
#if KVL_X86
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    static const bool vbmi2 = avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    switch (path) {
        case AVX2: return avx2;
        case AVX512: return avx512;
        case AVX512_VBMI2: return vbmi2;
        case SCALAR: break;
    }
    return true;
#else
    return path == SCALAR;
#endif
}

// The execution asked for, or the best one below it that this CPU has.
Path usable(uint32_t path) {
    for (Path found : {AVX512_VBMI2, AVX512, AVX2})
        if (path >= found && cpu_has(found)) return found;
    return SCALAR;
}

DecodeKernel decode_kernel([[maybe_unused]] Path path, uint32_t lanes, uint32_t in_flight,
                           [[maybe_unused]] Form form) {
    DecodeKernel kernel = nullptr;
#if KVL_X86
    if (path == AVX512_VBMI2) kernel = decode_kernel_vbmi2(lanes, in_flight, form);
    if (path >= AVX512 && !kernel) kernel = decode_kernel_avx512(lanes, in_flight, form);
    if (path >= AVX2 && !kernel) kernel = decode_kernel_avx2(lanes, in_flight, form);
#endif
    if (kernel) return kernel;
    return lanes < 8 ? decode_groups_of<ScalarDecoder, 4>(in_flight) : decode_groups_of<ScalarDecoder, 1>(in_flight);
}

// How a sound stream will be decoded that is of the form it says.
Form form_of([[maybe_unused]] Path path, [[maybe_unused]] const Stream& s) {
#if KVL_X86
    const Form form = static_cast<Form>(s.form);
    const bool searched = path >= AVX512 ? searches_avx512(s.lanes, form) : path == AVX2 && searches_avx2(s.lanes, form);
    if (searched && !(form == FORM_BASE && (mostly_shifted(s) || !mostly_near(s)))) return form;
#endif
    return FORM_ANY;
}

// Whether the stream is under way; else its status is set.
bool begin(Flight& f, Stream& s) {
    if (s.status != OK) return false;
    f.stream = &s;
    f.runs.begin(s);
    f.shifts.begin(s, f.shift_room);
    std::memset(f.states, 0, sizeof f.states);
    for (uint32_t lane = 0; lane < s.lanes; lane++) f.states[lane] = load_u32(s.data + 4 * lane);
    f.at = s.data + 4 * s.lanes;
    f.end = s.data + s.data_bytes;
    f.done = 0;
    f.in_tail = f.end - f.at < Flight::READ_AHEAD;
    if (f.in_tail)
        f.enter_tail();
    else
        f.limit = f.end - Flight::READ_AHEAD;
    return true;
}

// What is left of a stream once no whole group is.
Status finish(Flight& f) {
    const Stream& s = *f.stream;
    for (uint32_t lane = 0; f.done < s.symbol_count; lane++, f.done++) {
        const uint32_t table = f.runs.table() + (s.contexts ? s.contexts[f.done] : 0u) +
                               (s.shifts ? s.shifts[f.done % s.period] : 0u);
        const uint32_t slot = s.tables[static_cast<uint64_t>(table) * KVL_SLOTS + (f.states[lane] & (KVL_SLOTS - 1))];
        s.symbols[f.done] = static_cast<uint8_t>(kvl_slot_symbol(slot));
        uint32_t state = kvl_decode_step(f.states[lane], slot);
        if (state < KVL_STATE_LOW) {
            if (f.end - f.at < 2) return TRUNCATED;
            state = kvl_refill(state, load_u16(f.at));
            f.at += 2;
        }
        f.states[lane] = state;
        f.runs.advance(1);
    }
    if (f.at != f.end) return TRAILING;
    for (uint32_t lane = 0; lane < s.lanes; lane++)
        if (f.states[lane] != KVL_STATE_LOW) return BAD_FINAL_STATE;
    return note(s);
}

// Whether the stream can go on in a kernel; else its status is set.
bool proceeds(Flight& f) {
    if (f.at > f.limit && !f.in_tail) f.enter_tail();
    if (f.ready()) return true;
    f.stream->status = f.at > f.end ? TRUNCATED : finish(f);
    return false;
}

struct Waiting {
    Stream* stream;
    Form form;
};

// Decodes the streams that `next` hands out, several of one lane count and form at a time but no more than `share`.
void decode(const std::vector<Waiting>& streams, std::atomic<uint32_t>& next, uint32_t share, Path path) {
    const uint32_t count = static_cast<uint32_t>(streams.size());
    Flight room[IN_FLIGHT_MAX];
    Flight* flights[IN_FLIGHT_MAX];  // the first `used` are under way
    for (int i = 0; i < IN_FLIGHT_MAX; i++) flights[i] = &room[i];
    uint32_t used = 0;
    uint32_t lanes = 0;
    Form form = FORM_ANY;
    uint32_t waiting = next.fetch_add(1, std::memory_order_relaxed);
    while (used > 0 || waiting < count) {
        if (used == 0) lanes = streams[waiting].stream->lanes, form = streams[waiting].form;
        while (waiting < count && streams[waiting].stream->lanes == lanes && streams[waiting].form == form &&
               used < share && used < IN_FLIGHT_MAX && decode_kernel(path, lanes, used + 1, form)) {
            if (begin(*flights[used], *streams[waiting].stream) && proceeds(*flights[used])) used++;
            waiting = next.fetch_add(1, std::memory_order_relaxed);
        }
        if (used > 0) decode_kernel(path, lanes, used, form)(flights);
        for (uint32_t i = used; i-- > 0;)
            if (!proceeds(*flights[i])) std::swap(flights[i], flights[--used]);
    }
}

// The symbol before, in the way that looks at every bound.
Status encode_one(Ascent& a) {
    const Stream& s = *a.stream;
    const uint64_t position = a.left - 1;
    uint32_t& state = a.states[position % s.lanes];
    const uint32_t table = a.runs.table() + (s.contexts ? s.contexts[position] : 0u);
    const uint32_t entry = s.tables[static_cast<uint64_t>(table) * KVL_SYMBOLS + s.symbols[position]];
    if (!has_code(entry)) return BAD_JOB;
    if (a.at - a.begin < 2) return NO_ROOM;
    a.at = give_up_word(state, entry, a.at);
    state = encode_entry(state, entry);
    a.left--;
    a.runs.advance(1);
    return OK;
}

EncodeKernel encode_kernel([[maybe_unused]] Path path, [[maybe_unused]] uint32_t lanes) {
    EncodeKernel kernel = nullptr;
#if KVL_X86
    if (path >= AVX512) kernel = encode_kernel_avx512(lanes);
    if (path >= AVX2 && !kernel) kernel = encode_kernel_avx2(lanes);
#endif
    return kernel ? kernel : encode_groups<ScalarEncoder>;
}

// Writes from the end of the buffer towards its start; `data_bytes` comes back as the bytes used, at the buffer's end.
Status encode(Stream& s, Path path) {
    if (!job_is_sound(s)) return BAD_JOB;
    Ascent a;
    a.stream = &s;
    a.runs.begin(s);
    a.begin = const_cast<uint8_t*>(s.data);
    a.at = a.begin + s.data_bytes;
    a.left = s.symbol_count;
    for (uint32_t& state : a.states) state = KVL_STATE_LOW;
    const uint64_t whole = a.left - a.left % s.lanes;
    for (const uint64_t stop : {whole, uint64_t{0}}) {
        while (a.left > stop)
            if (Status status = encode_one(a); status != OK) return status;
        if (stop > 0) encode_kernel(path, s.lanes)(a);
    }
    if (static_cast<uint64_t>(a.at - a.begin) < 4ull * s.lanes) return NO_ROOM;
    a.at -= 4 * s.lanes;
    for (uint32_t lane = 0; lane < s.lanes; lane++) store_u32(a.at + 4 * lane, a.states[lane]);
    s.data_bytes = static_cast<uint64_t>(a.begin + s.data_bytes - a.at);
    return OK;
}

// Those of a form next to each other, as only they are decoded several at a time.
void sort(std::vector<Waiting>& waiting) {
    std::stable_sort(waiting.begin(), waiting.end(), [](const Waiting& a, const Waiting& b) {
        return a.stream->lanes != b.stream->lanes ? a.stream->lanes > b.stream->lanes : a.form > b.form;
    });
}

}  // namespace

void decode_sound(Stream* streams, uint32_t count, uint32_t path) {
    const Path found = usable(path);
    std::vector<Waiting> waiting(count);
    for (uint32_t i = 0; i < count; i++) {
        streams[i].status = streams[i].data_bytes < 4ull * streams[i].lanes ? TRUNCATED : OK;
        waiting[i] = {streams + i, form_of(found, streams[i])};
    }
    sort(waiting);
    std::atomic<uint32_t> next{0};
    decode(waiting, next, count, found);
}

// The executions that this CPU has: bit n for `Path` n.
KVL_EXPORT uint32_t kvl_paths() {
    uint32_t paths = 0;
    for (Path path : {SCALAR, AVX2, AVX512, AVX512_VBMI2}) paths |= static_cast<uint32_t>(cpu_has(path)) << path;
    return paths;
}

KVL_EXPORT void kvl_decode(Stream* streams, uint32_t count, uint32_t threads, uint32_t path) {
    const Path found = usable(path);
    const uint32_t workers = threads < 1 ? 1 : threads < count ? threads : count;
    const uint32_t share = count == 0 ? 0 : (count + workers - 1) / workers;
    std::vector<Waiting> waiting(count);
    for (uint32_t i = 0; i < count; i++) {
        Stream& s = streams[i];
        s.status = !job_is_sound(s) ? BAD_JOB : s.data_bytes < 4ull * s.lanes ? TRUNCATED : OK;
        waiting[i] = {&s, s.status == OK && form_holds(s) ? form_of(found, s) : FORM_ANY};
    }
    sort(waiting);
    std::atomic<uint32_t> next{0};
    spread(workers, workers, [&](uint32_t) { decode(waiting, next, share, found); });
}

KVL_EXPORT void kvl_encode(Stream* streams, uint32_t count, uint32_t threads, uint32_t path) {
    const Path found = usable(path);
    spread(count, threads, [&](uint32_t i) { streams[i].status = encode(streams[i], found); });
}
