// Spreads the jobs of one call over threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// Runs `work(i)` for every i below `count` on up to `threads` threads; results must not depend on the order.
template <class Work>
void spread(uint32_t count, uint32_t threads, const Work& work) {
    std::atomic<uint32_t> next{0};
    auto drain = [&] {
        for (uint32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    };
    std::vector<std::thread> extra;
    for (uint32_t t = 1; t < threads && t < count; t++) {
        try {
            extra.emplace_back(drain);
        } catch (...) {
            break;  // no more threads to be had: the ones there are do the work
        }
    }
    drain();
    for (auto& thread : extra) thread.join();
}
