// Runs a libFuzzer target without libFuzzer: `fuzz COUNT [SEED]` feeds it that many random inputs, each made from
// scratch or by changing the one before. The seed is printed; an input that fails can be had again from it.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s COUNT [SEED]\n", argv[0]);
        return 2;
    }
    const unsigned long long count = std::strtoull(argv[1], nullptr, 10);
    const unsigned long long seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
    std::printf("%llu cases from seed %llu\n", count, seed);
    std::fflush(stdout);
    std::mt19937_64 random(seed);
    std::vector<uint8_t> input;
    for (unsigned long long i = 0; i < count; i++) {
        if (input.empty() || random() % 8 == 0) {
            input.resize(random() % 300);
            for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
        } else {
            for (unsigned changes = 1 + random() % 4; changes > 0; changes--)
                input[random() % input.size()] = static_cast<uint8_t>(random());
            if (random() % 8 == 0) input.resize(random() % input.size());
        }
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%llu cases ran\n", count);
    return 0;
}
