// Large zeroed arrays whose memory the system commits on first use, and the error if it refuses them.
#ifndef PUNA_MEMORY_H
#define PUNA_MEMORY_H

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace puna {

constexpr size_t kHugePage = size_t{2} << 20;  // bytes; of x86-64, and of Arm with pages of 4 KB

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
        if (count > (SIZE_MAX - 2 * kHugePage) / sizeof(T)) throw OutOfMemory(SIZE_MAX);
        const size_t bytes = mapped_bytes(count), before = bytes < kHugePage ? 0 : kHugePage;
        void* got = mmap(nullptr, before + bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
        if (got == MAP_FAILED) throw OutOfMemory(count * sizeof(T));
        uint8_t* from = static_cast<uint8_t*>(got);
        if (before) {  // start at a multiple of kHugePage, and return the memory before and after
            const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(from) % kHugePage) % kHugePage;
            if (skip) munmap(from, skip);
            from += skip;
            if (skip < before) munmap(from + bytes, before - skip);
        }
        data_ = reinterpret_cast<T*>(from);
        (void)huge;
#if defined(MADV_HUGEPAGE)
        if (huge) madvise(from, bytes, MADV_HUGEPAGE);
#endif
    }
    ~Buffer() {
        if (data_) munmap(data_, mapped_bytes(count_));
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
#if defined(MREMAP_FIXED)
        // Linux moves the page table's entries instead of copying the contents. Huge pages remain huge if both
        // addresses are multiples of kHugePage. If the system refuses the addresses for that, it chooses one itself.
        if (data_ && mapped_bytes(count_) >= kHugePage) {
            Buffer target;
            try {
                target = Buffer(count);
            } catch (const OutOfMemory&) {
            }
            const int flags = MREMAP_MAYMOVE | (target.data_ ? MREMAP_FIXED : 0);
            void* got = mremap(data_, mapped_bytes(count_), mapped_bytes(count), flags, target.data_);
            if (got == MAP_FAILED) throw OutOfMemory((count - count_) * sizeof(T));
            target.data_ = nullptr;  // its mapping has been replaced
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
    // Bytes of the mapping of `count` values. Only a range that starts and ends at multiples of kHugePage can consist
    // of huge pages.
    static size_t mapped_bytes(size_t count) {
        const size_t bytes = count * sizeof(T);
        return bytes < kHugePage ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
    }

    T* data_ = nullptr;
    size_t count_ = 0;
};

// Memory for arrays that are freed with the arena. Small arrays share huge pages: a processor that reads them from
// pages of 4 KB misses its TLB in each page. Zen 5: see benchmarks/NOTES.md.
class Arena {
  public:
    // Returns zeroed memory for `bytes` bytes, which starts at a cache line. Throws OutOfMemory.
    uint8_t* take(size_t bytes) {
        constexpr size_t kAlignment = 64;
        if (bytes > SIZE_MAX - kHugePage) throw OutOfMemory(SIZE_MAX);
        bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
        if (slabs_.empty() || slabs_.back().size() - used_ < bytes) {
            // Each slab doubles the memory, so that little of it remains unused at the ends of slabs.
            const size_t least = (bytes + kHugePage - 1) / kHugePage * kHugePage;
            slabs_.reserve(slabs_.size() + 1);
            try {
                slabs_.emplace_back(std::max(least, total_));
            } catch (const OutOfMemory&) {
                slabs_.emplace_back(least);
            }
            total_ += slabs_.back().size();
            used_ = 0;
        }
        used_ += bytes;
        return slabs_.back().data() + (used_ - bytes);
    }

  private:
    std::vector<Buffer<uint8_t>> slabs_;
    size_t used_ = 0, total_ = 0;  // bytes of the last slab, and of all slabs
};

}  // namespace puna

#endif
