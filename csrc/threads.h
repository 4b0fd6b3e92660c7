// A small pool of threads for loops whose pieces are a few microseconds long.
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

// Each thread has a range of its own, which it takes piece by piece, so that it reads memory in sequence; when it is
// done it helps with the others' ranges. So a thread that the system takes away holds up one piece, not its share of
// the loop. What a piece computes must not depend on who computes it. One caller at a time.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(begin, end) for pieces of [0, count), from one multiple of `grain` to the next but where the threads'
    // shares meet; returns when all are done. The body must not throw.
    template <typename Body>
    void each(int64_t count, int64_t grain, const Body& body) {
        run(
            count, grain,
            [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
            &body);
    }

    // A grain that gives every thread several pieces.
    int64_t grain(int64_t count) const {
        const int64_t pieces = 4 * threads();
        return count > pieces ? (count + pieces - 1) / pieces : 1;
    }

  private:
    using Function = void (*)(const void*, int64_t, int64_t);

    void run(int64_t count, int64_t grain, Function function, const void* context);
    void end();
    void take_pieces(int thread);
    void work(int thread);

    // A thread's range, and where its next piece begins: the first may begin before the range, which cuts it.
    struct alignas(64) Range {
        std::atomic<int64_t> next{0};  // a multiple of the grain
        int64_t begin = 0;
        int64_t end = 0;
    };

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;    // of workers: a loop is open, or the pool ends
    std::condition_variable left_;    // of the caller: no worker is inside
    std::atomic<uint64_t> round_{0};  // odd while a loop is open
    std::atomic<int> inside_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> waiting_{false};  // the caller sleeps until `left_`
    std::atomic<bool> ending_{false};
    std::vector<Range> ranges_;
    int64_t grain_ = 1;
    Function function_ = nullptr;
    const void* context_ = nullptr;
};

}  // namespace puna

#endif
