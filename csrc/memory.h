// Large zeroed arrays whose memory the system commits on first use, and the error if it refuses them.
#ifndef PUNA_MEMORY_H
#define PUNA_MEMORY_H

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace puna {

// Thrown if the system refuses memory; the message states the amount.
class OutOfMemory : public std::bad_alloc {
  public:
    explicit OutOfMemory(size_t bytes) {
        std::snprintf(message_, sizeof message_,
                      "the system refused %.1f MB of memory; free memory, raise the limit of this process (ulimit -v), "
                      "or use a smaller model, fewer sequences or shorter texts",
                      static_cast<double>(bytes) / 1e6);
    }
    const char* what() const noexcept override { return message_; }

  private:
    char message_[200];
};

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    // `huge` asks the system for huge pages, which are faster to read. Throws OutOfMemory.
    explicit Buffer(size_t count, bool huge = true) : count_(count) {
        if (count == 0) return;
        if (count > SIZE_MAX / sizeof(T)) throw OutOfMemory(SIZE_MAX);
        void* got = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, kFlags, -1, 0);
        if (got == MAP_FAILED) throw OutOfMemory(count * sizeof(T));
        data_ = static_cast<T*>(got);
        (void)huge;
#if defined(MADV_HUGEPAGE)
        if (huge) madvise(got, count * sizeof(T), MADV_HUGEPAGE);
#endif
    }
    ~Buffer() {
        if (data_) munmap(data_, count_ * sizeof(T));
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }

    // Grows to at least `count` values; if it grows, the contents are lost and all values are zero.
    void grow_discarding(size_t count) {
        if (count > count_) *this = Buffer(count);
    }

    // Grows to at least `count` values and keeps the contents, which may move. Throws OutOfMemory and changes nothing
    // if the system refuses the memory.
    void grow(size_t count) {
        if (count <= count_) return;
#if defined(MREMAP_MAYMOVE)
        if (data_) {  // Linux moves the page table's entries instead of copying the contents
            void* got = mremap(data_, count_ * sizeof(T), count * sizeof(T), MREMAP_MAYMOVE);
            if (got == MAP_FAILED) throw OutOfMemory((count - count_) * sizeof(T));
            data_ = static_cast<T*>(got);
            count_ = count;
            return;
        }
#endif
        Buffer larger(count);
        if (data_) std::memcpy(larger.data_, data_, count_ * sizeof(T));
        *this = std::move(larger);
    }

  private:
#if defined(MAP_NORESERVE)
    static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
    static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif
    T* data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace puna

#endif
