// Measures the speed of memory and arithmetic: see puna_measure in puna.h.

#include "measure.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "memory.h"

namespace puna {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTurns = 5;                       // measurements; their median is the result
constexpr int64_t kBytes = int64_t{256} << 20;  // larger than any cache, so that reads come from memory

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Returns the seconds until all `threads` threads have run body(thread): the median of kTurns measurements.
template <typename Body>
double together(int threads, const Body& body) {
    std::vector<double> turns;
    for (int turn = 0; turn < kTurns; ++turn) {
        const auto start = Clock::now();
        std::vector<std::thread> others;
        const auto join = [&] {
            for (auto& other : others) other.join();
        };
        try {
            for (int i = 1; i < threads; ++i) others.emplace_back([&body, i] { body(i); });
        } catch (...) {  // the system refused to start a thread
            join();
            throw;
        }
        body(0);
        join();
        turns.push_back(seconds_since(start));
    }
    std::sort(turns.begin(), turns.end());
    return turns[kTurns / 2];
}

// Returns the multiply-accumulates per second of a workload on `threads` threads. A short probe sets the number of
// rounds so that one measurement takes about 20 milliseconds.
double rate(int64_t (*work)(int64_t, float*), int threads) {
    constexpr int64_t kProbe = 200000;
    float sink;
    const auto start = Clock::now();
    work(kProbe, &sink);
    const int64_t rounds = std::max<int64_t>(1, static_cast<int64_t>(kProbe * 0.02 / seconds_since(start)));
    std::vector<int64_t> done(static_cast<size_t>(threads));
    const double seconds = together(threads, [&](int i) {
        float own;
        done[static_cast<size_t>(i)] = work(rounds, &own);
    });
    return static_cast<double>(done[0]) * threads / seconds;
}

}  // namespace

puna_machine measure(const Kernels& kernels, int threads) {
    Buffer<uint8_t> memory(static_cast<size_t>(kBytes));
    // Write to every page, so that the system commits it before the measurement.
    for (int64_t at = 0; at < kBytes; at += 4096) memory.data()[at] = 1;
    // read_work needs a multiple of 256 bytes per thread.
    const int64_t share = kBytes / threads / 256 * 256;
    const double seconds = together(threads, [&](int i) {
        float sink;
        kernels.read_work(memory.data() + i * share, share, &sink);
    });
    puna_machine out;
    out.bytes_per_second = static_cast<double>(share) * threads / seconds;
    const double alone = rate(kernels.integer_work, 1);
    out.integer_products_per_second = rate(kernels.integer_work, threads);
    out.float_products_per_second = rate(kernels.float_work, threads);
    out.share_of_one_thread = out.integer_products_per_second / threads / alone;
    return out;
}

}  // namespace puna
