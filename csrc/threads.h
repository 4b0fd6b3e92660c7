// A small thread pool for parallel loops whose pieces take a few microseconds.
#ifndef PUNA_THREADS_H
#define PUNA_THREADS_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace puna {

// Each thread starts with its own contiguous range, which it processes piece by piece so that it reads memory
// sequentially; then it takes pieces of the other threads' ranges. A thread that the system suspends thus delays one
// piece, not its share of the loop. The result of a piece must not depend on the thread that computes it. Only one
// thread at a time may call the pool.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(begin, end, thread) for pieces that cover [0, count) and returns when all are done. Pieces begin at
    // multiples of `grain` or at the start of a thread's range. `thread`, below threads(), selects the memory of a
    // thread. The body must be noexcept: memory is reserved before the loop.
    template <typename Body>
    void each(int64_t count, int64_t grain, const Body& body) {
        static_assert(std::is_nothrow_invocable_v<const Body&, int64_t, int64_t, int>, "the body must be noexcept");
        run(
            count, grain,
            [](const void* context, int64_t begin, int64_t end, int thread) noexcept {
                (*static_cast<const Body*>(context))(begin, end, thread);
            },
            &body);
    }

    // Returns a grain that splits `count` items into about four pieces per thread. Zen 4: two to eight are within the
    // noise.
    int64_t grain(int64_t count) const {
        const int64_t pieces = 4 * threads();
        return count > pieces ? (count + pieces - 1) / pieces : 1;
    }

  private:
    using Function = void (*)(const void*, int64_t, int64_t, int) noexcept;

    void run(int64_t count, int64_t grain, Function function, const void* context);
    void end();
    void take_pieces(int thread);
    void work(int thread);

    // A thread's range, and the start of its next piece. The first piece may start before the range; it is clipped.
    struct alignas(64) Range {
        std::atomic<int64_t> next{0};  // a multiple of the grain
        int64_t begin = 0;
        int64_t end = 0;
    };

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;    // for workers: a loop is open, or the pool is being destroyed
    std::condition_variable left_;    // for the caller: no worker is inside the loop
    std::atomic<uint64_t> round_{0};  // odd while a loop is open
    std::atomic<int> inside_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> waiting_{false};  // the caller sleeps on `left_`
    std::atomic<bool> ending_{false};
    std::vector<Range> ranges_;
    int64_t grain_ = 1;
    Function function_ = nullptr;
    const void* context_ = nullptr;
};

// Waits until `count` is `target`: other threads of the same loop increase it, without waiting for this thread.
void wait_for(const std::atomic<int64_t>& count, int64_t target);

}  // namespace puna

#endif
