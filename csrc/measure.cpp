// What this machine can do, measured: see puna_measure in puna.h.

#include "measure.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "memory.h"

namespace puna {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTurns = 5;
constexpr int64_t kBytes = int64_t{256} << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Seconds that `threads` threads take for body(thread) together: the median of several turns.
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
        } catch (...) {  // the system gives no more threads
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

// Multiply-accumulates per second of one of the kernels' workloads: rounds enough for some 20 milliseconds.
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
    for (int64_t at = 0; at < kBytes; at += 4096) memory.data()[at] = 1;
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
