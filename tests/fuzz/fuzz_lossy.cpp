// Fuzzes the loops of the lossy levels in the compiled core, in libFuzzer's form; driver.cpp runs it elsewhere.
//
// What holds for every input that codec/entropy/native_lossy.py lets through: nothing is read or written outside its
// buffers (heap blocks of their exact sizes, for the sanitizers to watch) nor in the gaps of a longer cache; where nothing
// is scaled or turned, every path restores exactly the sums of whole numbers that codec/profile.py specifies; what does
// not fit its description is refused; what is quantised joins to itself; and tensors that are not rotated come to their
// channels bit for bit.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../../codec/entropy/coder.h"
#include "../../codec/entropy/synthesis.h"
#include "fuzz_input.h"

namespace {

// Mirrors of the structs that codec/entropy/rotation.cpp and quantise.cpp keep to themselves.
struct Gather {
    const Tensor* tensors;
    float* channels;
    uint32_t tensor_count, tokens, width;
    int32_t status;
};

struct Quantise {
    const float* coefficients;
    const float* factors;
    uint8_t* levels[LEVELS_MAX];
    int32_t* peaks;
    uint32_t width, tokens, refinements;
    int32_t status;
};

}  // namespace

extern "C" uint64_t kvl_packed_bytes(uint32_t width, uint32_t path);
extern "C" void kvl_pack_basis(const int8_t* basis, uint32_t width, uint32_t path, uint8_t* out);
extern "C" void kvl_restore(Restore* jobs, uint32_t count, uint32_t threads);
extern "C" void kvl_gather(Gather* jobs, uint32_t count, uint32_t threads);
extern "C" void kvl_quantise(Quantise* jobs, uint32_t count, uint32_t threads);

namespace {

enum : int32_t { ESCAPE_MAX = 1 << 27, FINE_MAX = 1 << 30 };
enum { SYMBOL_ZERO = 128, SYMBOL_MAX = 127, JOBS_MAX = 3, PARTS_MAX = 3 };

// Any number that a float can be: ordinary, huge, tiny, infinite or none.
float any_float(Input& in) {
    switch (in.byte() % 16) {
        case 0: return std::numeric_limits<float>::infinity();
        case 1: return std::numeric_limits<float>::quiet_NaN();
        case 2: return std::numeric_limits<float>::max();
        case 3: return std::numeric_limits<float>::denorm_min();
        case 4: return 65519.0f;
        default: break;
    }
    const uint32_t bits = in.random() << 1 ^ in.random();
    float number;
    std::memcpy(&number, &bits, 4);
    return in.one_in(2) ? number : static_cast<float>(in.byte()) - 128.0f;
}

int32_t any_escape(Input& in) {
    static const int32_t edges[] = {ESCAPE_MAX - 1, 1 - ESCAPE_MAX, 0, 1, -1, 127, 128, -128, 32767, -32768, 1 << 23};
    if (in.one_in(2)) return edges[in.byte() % (sizeof edges / sizeof *edges)];
    return static_cast<int32_t>(in.random() % (2u * ESCAPE_MAX - 1)) - (ESCAPE_MAX - 1);
}

// One part's arrays: symbols as the entropy decoder gives them, and the numbers that they stand for.
struct PartBlocks {
    uint32_t width, levels, left, rows[LEVELS_MAX];
    std::unique_ptr<uint8_t[]> symbols[LEVELS_MAX];
    std::unique_ptr<int32_t[]> escapes;
    std::unique_ptr<int8_t[]> basis;  // null where coefficients are channels
    std::unique_ptr<float[]> factors, scale, mean, first_mean;
    uint64_t escape_count = 0;
    std::vector<int64_t> numbers;  // [width][tokens] in the level's units

    PartBlocks(Input& in, uint32_t tokens, bool plain)
        : width(1 + (in.one_in(16) ? in.below(150) : in.below(30))), levels(1 + in.byte() % LEVELS_MAX), left(0), rows{} {
        left = in.byte() % (LEVELS_MAX - levels + 1);
        for (uint32_t level = 0, least = 0; level < levels; level++)
            rows[level] = least = least + in.below(width - least + 1);
        fill_symbols(in, tokens);
        if (in.one_in(2)) {
            const bool extreme = in.one_in(4);
            basis = block<int8_t>(static_cast<uint64_t>(width) * width);
            for (uint64_t i = 0; i < static_cast<uint64_t>(width) * width; i++)
                basis[i] = static_cast<int8_t>(extreme ? (in.random() & 1 ? 127 : -127) : in.random() % 255 - 127);
        }
        factors = floats(in, tokens, plain, 1.0f);
        scale = floats(in, width, plain, 1.0f);
        mean = floats(in, width, plain, 0.0f);
        first_mean = floats(in, width, plain, 0.0f);
    }

    static std::unique_ptr<float[]> floats(Input& in, uint64_t count, bool plain, float value) {
        auto made = block<float>(count);
        for (uint64_t i = 0; i < count; i++) made[i] = plain ? value : any_float(in);
        return made;
    }

    void fill_symbols(Input& in, uint32_t tokens) {
        numbers.assign(static_cast<size_t>(width) * tokens, 0);
        std::vector<int32_t> escaped;
        const uint8_t dense = in.byte();
        for (uint32_t level = 0; level < levels; level++) {
            const uint64_t count = static_cast<uint64_t>(rows[level]) * tokens;
            symbols[level] = block<uint8_t>(count);
            for (uint64_t i = 0; i < count; i++) {
                int64_t& number = numbers[i];
                uint8_t& symbol = symbols[level][i];
                const bool drawn = (in.random() & 255) <= dense;
                if (level == 0) {
                    symbol = drawn ? static_cast<uint8_t>(in.random()) : static_cast<uint8_t>(SYMBOL_ZERO);
                    if (symbol == 0) escaped.push_back(any_escape(in));
                    number = symbol ? symbol - SYMBOL_ZERO : escaped.back();
                } else {
                    symbol = drawn ? static_cast<uint8_t>(in.random() % (number ? 2 : 3)) : 0;
                    if (number == 0)
                        number = symbol == 2 ? -1 : symbol;
                    else
                        number = 2 * number + (number < 0 ? -symbol : symbol);
                }
            }
        }
        for (int64_t& number : numbers)
            if (left && number) number = 4 * number + (number > 0 ? 1 : -1);
        escape_count = escaped.size();
        escapes = block<int32_t>(escape_count);
        for (uint64_t i = 0; i < escape_count; i++) escapes[i] = escaped[i];
    }

    Part part(uint32_t start, const uint8_t* packed) const {
        Part made{};
        for (uint32_t level = 0; level < levels; level++) {
            made.symbols[level] = symbols[level].get();
            made.rows[level] = rows[level];
        }
        made.escapes = escapes.get();
        made.escape_count = escape_count;
        made.basis = packed;
        made.factors = factors.get();
        made.scale = scale.get();
        made.mean = mean.get();
        made.first_mean = first_mean.get();
        made.levels = levels;
        made.left = left;
        made.start = start;
        made.width = width;
        return made;
    }

    // What channel `c` of token `t` is where factors and scales are 1 and means 0.
    float sum(uint32_t c, uint32_t t, uint32_t tokens) const {
        int64_t total = basis ? 0 : numbers[static_cast<size_t>(c) * tokens + t];
        for (uint32_t row = 0; basis && row < width; row++)
            total += numbers[static_cast<size_t>(row) * tokens + t] * basis[static_cast<size_t>(row) * width + c];
        return static_cast<float>(total);
    }
};

// A tensor's place in memory: dense, in a longer cache, tokens first, or backwards; what is between its rows is guarded.
struct TensorBlock {
    std::unique_ptr<uint32_t[]> memory;  // aligned for a float32
    std::unique_ptr<float[]> cosines, sines;
    uint64_t bytes = 0;
    uint32_t item = 4;
    Tensor tensor{};

    TensorBlock(Input& in, uint32_t tokens, uint32_t start, uint32_t room, uint32_t element, bool turned) {
        tensor.element = element;
        item = element == ELEMENT_FLOAT32 ? 4 : 2;
        tensor.start = start;
        tensor.dim = 1 + in.below(room);
        tensor.heads = 1 + in.below(room / tensor.dim);
        const uint64_t row = static_cast<uint64_t>(tensor.dim) * item, gap = in.one_in(2) ? 0 : item * (1 + in.byte() % 5);
        const bool tokens_first = in.one_in(3);
        tensor.token_stride = static_cast<int64_t>(tokens_first ? (row + gap) * tensor.heads : row + gap);
        tensor.head_stride = static_cast<int64_t>(tokens_first ? row + gap : (row + gap) * tokens + 3 * gap);
        const int64_t last_head = tensor.head_stride * (tensor.heads - 1), last_token = tensor.token_stride * (tokens - 1);
        bytes = static_cast<uint64_t>(last_head + last_token) + row;
        memory.reset(new uint32_t[(bytes + 3) / 4]);
        tensor.data = start_of();
        if (in.one_in(4)) tensor.data += last_head, tensor.head_stride = -tensor.head_stride;
        if (in.one_in(4)) tensor.data += last_token, tensor.token_stride = -tensor.token_stride;
        if (turned && tensor.dim > 1 && in.one_in(2)) {
            tensor.pairs = 1 + in.below(tensor.dim / 2);
            tensor.first_dim = in.below(tensor.dim - 2 * tensor.pairs + 1);
            tensor.interleaved = in.byte() & 1;
            cosines = PartBlocks::floats(in, static_cast<uint64_t>(tokens) * tensor.pairs, false, 0);
            sines = PartBlocks::floats(in, static_cast<uint64_t>(tokens) * tensor.pairs, false, 0);
            tensor.cosines = cosines.get();
            tensor.sines = sines.get();
        }
    }
    // The end of the block is the end of the tensor: what is read or written behind it is seen.
    uint8_t* start_of() { return reinterpret_cast<uint8_t*>(memory.get()) + ((bytes + 3) / 4 * 4 - bytes) / item * item; }
    uint8_t* row(uint32_t head, uint32_t token) const {
        return tensor.data + head * tensor.head_stride + token * tensor.token_stride;
    }
    void clear() { std::memset(memory.get(), 0xA5, (bytes + 3) / 4 * 4); }
    // Moves the rows out, guards in their place, and tells whether anything but the rows was touched.
    std::vector<uint8_t> take(uint32_t tokens) {
        std::vector<uint8_t> found;
        for (uint32_t head = 0; head < tensor.heads; head++)
            for (uint32_t token = 0; token < tokens; token++) {
                uint8_t* at = row(head, token);
                found.insert(found.end(), at, at + static_cast<size_t>(tensor.dim) * item);
                std::memset(at, 0xA5, static_cast<size_t>(tensor.dim) * item);
            }
        const uint8_t* all = reinterpret_cast<const uint8_t*>(memory.get());
        for (uint64_t i = 0; i < (bytes + 3) / 4 * 4; i++) require(all[i] == 0xA5, "the gaps of a cache were written to");
        return found;
    }
};

// A block of layers to restore.
struct JobBlocks {
    uint32_t tokens, width = 0;
    bool plain;
    std::vector<PartBlocks> parts;
    std::vector<TensorBlock> rooms;
    std::vector<Part> described;
    std::vector<Tensor> tensors;
    std::vector<std::unique_ptr<uint8_t[]>> packed;
    std::unique_ptr<float[]> channels;
    Restore job{};

    explicit JobBlocks(Input& in) : tokens(1 + in.below(40)), plain(in.one_in(2)) {
        for (uint32_t n = 1 + in.byte() % PARTS_MAX; n > 0; n--) {
            parts.emplace_back(in, tokens, plain);
            width += parts.back().width;
        }
        for (uint32_t n = in.byte() % 4; n > 0; n--) {
            const uint32_t start = in.below(width);
            rooms.emplace_back(in, tokens, start, width - start, in.byte() % 3, true);
        }
        if (in.one_in(2)) channels = block<float>(static_cast<uint64_t>(tokens) * width);
    }

    Restore& describe(uint32_t path) {
        described.clear(), tensors.clear(), packed.clear();
        uint32_t start = 0;
        for (PartBlocks& item : parts) {
            packed.emplace_back();
            if (item.basis) {
                packed.back() = block<uint8_t>(kvl_packed_bytes(item.width, path));
                kvl_pack_basis(item.basis.get(), item.width, path, packed.back().get());
            }
            described.push_back(item.part(start, packed.back().get()));
            start += item.width;
        }
        for (TensorBlock& room : rooms) {
            room.clear();
            tensors.push_back(room.tensor);
        }
        job = Restore{described.data(), tensors.data(), channels.get(), static_cast<uint32_t>(described.size()),
                      static_cast<uint32_t>(tensors.size()), tokens, width, path, OK};
        return job;
    }

    // Makes the description one that must be refused.
    void spoil(Input& in) {
        Part& part = described[in.byte() % described.size()];
        switch (in.byte() % 9) {
            case 0: part.levels = in.one_in(2) ? 0 : LEVELS_MAX + 1 + in.byte(); return;
            case 1: part.width = in.one_in(2) ? 0 : width + 1; return;
            case 2: part.start = in.one_in(2) ? width : 0u - 1 - in.byte(); return;
            case 3: part.rows[part.levels - 1] = part.width + 1 + in.byte(); return;
            case 4: part.escape_count += in.one_in(2) ? 1 : 0u - 1; return;
            case 5: job.tokens = 0; return;
            default: break;
        }
        if (tensors.empty()) {
            job.tokens = 0;
            return;
        }
        Tensor& tensor = tensors[in.byte() % tensors.size()];
        switch (in.byte() % 5) {
            case 0: tensor.heads = in.one_in(2) ? width + 1 : 0u - 1; return;
            case 1: tensor.dim = in.one_in(2) ? 4097 : 0u - 1; return;
            case 2: tensor.start = width + 1 + in.byte(); return;
            case 3: tensor.element = 3 + in.byte(); return;
            case 4: tensor.pairs = in.one_in(2) ? tensor.dim / 2 + 1 : 0u - 1; return;
        }
    }

    // What every path must give alike: whole numbers that nothing scales or turns. Other floats may differ in their last
    // bits, but they too stay in their rows.
    std::vector<uint8_t> result() {
        std::vector<uint8_t> found;
        if (channels && plain) {
            const uint8_t* bytes = reinterpret_cast<const uint8_t*>(channels.get());
            found.assign(bytes, bytes + sizeof(float) * tokens * width);
        }
        for (TensorBlock& room : rooms) {
            const std::vector<uint8_t> rows = room.take(tokens);
            if (plain && room.tensor.pairs == 0) found.insert(found.end(), rows.begin(), rows.end());
        }
        return found;
    }

    float sum(uint32_t channel, uint32_t token) const {
        for (const PartBlocks& part : parts) {
            if (channel < part.width) return part.sum(channel, token, tokens);
            channel -= part.width;
        }
        return 0;
    }

    void check_sums() const {
        if (!plain) return;
        for (uint32_t t = 0; channels && t < tokens; t++)
            for (uint32_t c = 0; c < width; c++)
                require(channels[static_cast<size_t>(t) * width + c] == sum(c, t), "a channel is not the sum that it must be");
        for (const TensorBlock& room : rooms) {
            const Tensor& tensor = room.tensor;
            if (tensor.pairs || tensor.element != ELEMENT_FLOAT32) continue;
            for (uint32_t i = 0; i < tensor.heads * tensor.dim; i++)
                for (uint32_t t = 0; t < tokens; t++) {
                    float number;
                    std::memcpy(&number, room.row(i / tensor.dim, t) + 4 * (i % tensor.dim), 4);
                    require(number == sum(tensor.start + i, t), "a tensor's number is not the sum that it must be");
                }
        }
    }
};

void fuzz_restore(Input& in) {
    std::vector<JobBlocks> blocks;
    for (uint32_t n = 1 + in.byte() % JOBS_MAX; n > 0; n--) blocks.emplace_back(in);
    const bool spoilt = in.one_in(8);
    const Input choices = in;
    std::vector<std::vector<uint8_t>> first;
    for (uint32_t path = SCALAR; path <= AVX512_VBMI2; path++) {
        std::vector<Restore> jobs;
        for (JobBlocks& item : blocks) item.describe(path);
        Input same = choices;
        if (spoilt) blocks[0].spoil(same);
        for (JobBlocks& item : blocks) jobs.push_back(item.job);
        kvl_restore(jobs.data(), static_cast<uint32_t>(jobs.size()), 1);
        for (size_t i = 0; i < blocks.size(); i++) {
            const bool refused = spoilt && i == 0;
            require(jobs[i].status == (refused ? BAD_JOB : OK), "a block's status is not what it must be");
            if (!refused) blocks[i].check_sums();
            const std::vector<uint8_t> found = blocks[i].result();
            if (path == SCALAR)
                first.push_back(found);
            else
                require(refused || found == first[i], "paths restore different whole numbers");
        }
    }
}

void fuzz_gather(Input& in) {
    const uint32_t tokens = 1 + in.below(40), width = 1 + in.below(60);
    std::vector<TensorBlock> rooms;
    std::vector<Tensor> tensors;
    bool finite = true;
    for (uint32_t start = 0; start < width; start += tensors.back().heads * tensors.back().dim) {
        rooms.emplace_back(in, tokens, start, width - start, ELEMENT_FLOAT32, true);
        tensors.push_back(rooms.back().tensor);
        const bool strange = in.one_in(4);
        for (uint32_t head = 0; head < tensors.back().heads; head++)
            for (uint32_t token = 0; token < tokens; token++)
                for (uint32_t d = 0; d < tensors.back().dim; d++) {
                    const float number = strange ? any_float(in) : static_cast<float>(in.random()) * 0.25f;
                    finite = finite && std::isfinite(number);
                    std::memcpy(rooms.back().row(head, token) + 4 * d, &number, 4);
                }
    }
    auto channels = block<float>(static_cast<uint64_t>(tokens) * width);
    Gather job{tensors.data(), channels.get(), static_cast<uint32_t>(tensors.size()), tokens, width, OK};
    kvl_gather(&job, 1, 1);
    require(job.status == (finite ? OK : BAD_JOB), "what is not finite is not what was found");
    for (size_t i = 0; finite && i < tensors.size(); i++)
        for (uint32_t head = 0; tensors[i].pairs == 0 && head < tensors[i].heads; head++)
            for (uint32_t token = 0; token < tokens; token++)
                require(!std::memcmp(channels.get() + static_cast<size_t>(token) * width + tensors[i].start +
                                         static_cast<size_t>(head) * tensors[i].dim,
                                     rooms[i].row(head, token), sizeof(float) * tensors[i].dim),
                        "a head came to its channels changed");
    Tensor& spoilt = tensors[in.byte() % tensors.size()];
    switch (in.byte() % 3) {
        case 0: spoilt.start = width; break;
        case 1: spoilt.pairs = spoilt.dim; break;
        case 2: spoilt.element = ELEMENT_FLOAT16; break;
    }
    kvl_gather(&job, 1, 1);
    require(job.status == BAD_JOB, "a tensor that does not fit was taken");
}

void fuzz_quantise(Input& in) {
    const uint32_t width = in.below(40), tokens = 1 + in.below(70), refinements = in.byte() % LEVELS_MAX;
    const uint64_t count = static_cast<uint64_t>(width) * tokens;
    const uint32_t strange = in.byte() % 4, range = 1 + in.byte() % 30;
    auto coefficients = block<float>(count), factors = block<float>(tokens);
    std::unique_ptr<uint8_t[]> levels[LEVELS_MAX];
    auto peaks = block<int32_t>(width);
    for (uint32_t t = 0; t < tokens; t++) factors[t] = std::exp2(static_cast<float>(in.byte() % 16) / 2);
    bool fits = true;
    for (uint64_t i = 0; i < count; i++) {
        coefficients[i] = strange == 0 ? any_float(in) : std::ldexp(static_cast<float>(in.random()) - 0x1p30f, -30 + static_cast<int>(in.random() % range));
        const float scaled = coefficients[i] * factors[i % tokens];
        fits = fits && std::fabs(scaled) < static_cast<float>(FINE_MAX - 1);
    }
    Quantise job{coefficients.get(), factors.get(), {}, peaks.get(), width, tokens, refinements, OK};
    for (uint32_t level = 0; level <= refinements; level++) {
        levels[level] = block<uint8_t>(count);
        job.levels[level] = levels[level].get();
    }
    kvl_quantise(&job, 1, 1);
    require(job.status == (fits ? OK : BAD_JOB), "a coefficient that is too large is not what was found");
    for (uint64_t i = 0; fits && i < count; i++) {
        const float scaled = coefficients[i] * factors[i % tokens];
        const int64_t magnitude = static_cast<int64_t>(std::fabs(scaled) + 0.375f), base = magnitude >> refinements;
        const bool negative = std::signbit(scaled);
        require(peaks[i / tokens] >= magnitude, "a peak is too low");
        int64_t number = levels[0][i] ? levels[0][i] - SYMBOL_ZERO : negative ? -base : base;
        require((levels[0][i] == 0) == (base > SYMBOL_MAX), "a base symbol escapes where it need not");
        for (uint32_t level = 1; level <= refinements; level++) {
            const uint8_t symbol = levels[level][i];
            require(symbol <= (number ? 1 : 2), "a refinement has no code");
            number = number == 0 ? (symbol == 2 ? -1 : symbol) : 2 * number + (number < 0 ? -symbol : symbol);
        }
        require(number == (negative ? -magnitude : magnitude), "a coefficient does not join to what it was");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    switch (in.byte() % 4) {
        case 0: fuzz_gather(in); break;
        case 1: fuzz_quantise(in); break;
        default: fuzz_restore(in); break;
    }
    return 0;
}
