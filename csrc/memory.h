// A large zeroed array whose memory the system commits on first use. Huge pages (the default) are read faster.
#ifndef PUNA_MEMORY_H
#define PUNA_MEMORY_H

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace puna {

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    // Throws std::bad_alloc if the system refuses the memory.
    explicit Buffer(size_t count, bool huge = true) : count_(count) {
        if (count == 0) return;
        if (count > SIZE_MAX / sizeof(T)) throw std::bad_alloc();
        void* got = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, kFlags, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
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

    // Grows to at least `count` values; the contents are lost when it grows.
    void reserve(size_t count) {
        if (count > count_) *this = Buffer(count);
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
