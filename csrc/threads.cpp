// See threads.h. A loop is open while `round_` is odd. A worker enters by incrementing `inside_` and then reading
// `round_` again; the caller closes the loop and then waits until `inside_` is 0. All these operations are sequentially
// consistent, so either the worker sees that the loop is closed, or the caller sees the worker inside. The same
// argument holds at the end: the last worker to leave reads `waiting_` after decrementing `inside_`, and the caller
// sets `waiting_` before reading `inside_`.

#include "threads.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace puna {

namespace {

// Number of polls before a thread sleeps. They take about 20 microseconds: longer than the gap between two loops of a
// forward pass, and short enough to leave the processor to other processes. Other numbers were not recorded.
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void wait_for(const std::atomic<int64_t>& count, int64_t target) {
    for (int spins = 0; count.load(std::memory_order_acquire) != target;)
        if (++spins < kSpins)
            pause();
        else
            std::this_thread::yield();  // the system has suspended the other thread
}

Pool::Pool(int threads) : ranges_(static_cast<size_t>(threads)) {
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {
        end();
        throw std::runtime_error("the system refused to start thread " + std::to_string(workers_.size() + 2) + " of " +
                                 std::to_string(threads) + "; use fewer threads");
    }
}

Pool::~Pool() { end(); }

void Pool::end() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ending_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(int64_t count, int64_t grain, Function function, const void* context) {
    if (count <= 0) return;
    if (workers_.empty() || count <= grain) {
        function(context, 0, count, 0);
        return;
    }
    function_ = function;
    context_ = context;
    grain_ = grain;
    const int64_t threads = this->threads();
    for (int64_t i = 0; i < threads; ++i) {
        Range& range = ranges_[static_cast<size_t>(i)];
        range.begin = count * i / threads;
        range.end = count * (i + 1) / threads;
        range.next = range.begin / grain * grain;
    }
    ++round_;  // open
    if (sleeping_ > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take_pieces(0);
    ++round_;  // closed
    for (int spins = 0; inside_ > 0 && spins < kSpins; ++spins) pause();
    if (inside_ > 0) {  // a worker was suspended in the middle of its piece
        std::unique_lock<std::mutex> lock(mutex_);
        waiting_.exchange(true);  // not a plain store: under qemu the read of `inside_` may overtake it
        left_.wait(lock, [&] { return inside_ == 0; });
        waiting_ = false;
    }
}

void Pool::take_pieces(int thread) {
    const int threads = this->threads();
    for (int i = 0; i < threads; ++i) {
        Range& range = ranges_[static_cast<size_t>((thread + i) % threads)];
        for (;;) {
            const int64_t next = range.next.fetch_add(grain_);
            const int64_t begin = std::max(next, range.begin), end = std::min(next + grain_, range.end);
            if (begin >= end) break;
            function_(context_, begin, end, thread);
        }
    }
}

void Pool::work(int thread) {
    uint64_t seen = 0;
    for (;;) {
        uint64_t round = round_;
        for (int spins = 0; spins < kSpins && (round == seen || round % 2 == 0) && !ending_; ++spins) {
            pause();
            round = round_;
        }
        if (round == seen || round % 2 == 0) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleeping_;
            wake_.wait(lock, [&] { return ending_ || (round_ != seen && round_ % 2 == 1); });
            --sleeping_;
            if (ending_) return;
            round = round_;
        }
        if (ending_) return;
        ++inside_;
        if (round_ == round && round % 2 == 1) take_pieces(thread);
        if (--inside_ == 0 && waiting_) {
            std::lock_guard<std::mutex> lock(mutex_);
            left_.notify_one();
        }
        seen = round;
    }
}

}  // namespace puna
