// Detects the processor's instruction sets and the number of cores that this process may use.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "puna.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

int hardware_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

#if defined(__linux__)

// Converts a quota of `limit` microseconds per `period` microseconds to a number of processors, rounded up. Without a
// positive quota and period, returns the number of all processors.
int cores_of(const std::string& limit, const std::string& period) {
    const long long part = std::strtoll(limit.c_str(), nullptr, 10), whole = std::strtoll(period.c_str(), nullptr, 10);
    if (part <= 0 || whole <= 0) return hardware_threads();  // "max" (version 2) and -1 (version 1): no quota
    return std::max(1, static_cast<int>(std::min<long long>((part + whole - 1) / whole, hardware_threads())));
}

// Reads the processor quota of a control group: cpu.max in version 2, cpu.cfs_quota_us and cpu.cfs_period_us in version
// 1 (kernel documentation: "cgroup-v2" and "CFS Bandwidth Control").
int quota_of(const std::string& folder, bool second_version) {
    std::string limit, period;
    if (second_version) {
        std::ifstream(folder + "/cpu.max") >> limit >> period;
    } else {
        std::ifstream(folder + "/cpu.cfs_quota_us") >> limit;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    return cores_of(limit, period);
}

// The smallest quota of this process's control group and its ancestors.
int quota_cores() {
    int least = hardware_threads();
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // hierarchy number:controllers:/path
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool second_version = controllers == ",,";
        if (!second_version && controllers.find(",cpu,") == std::string::npos) continue;
        const std::string root = second_version ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        for (std::string path = line.substr(second + 1); !path.empty(); path.resize(path.rfind('/')))
            least = std::min(least, quota_of(root + path, second_version));
        least = std::min(least, quota_of(root, second_version));
    }
    return least;
}

// Returns an identifier of a logical processor's physical core: the kernel's list of the logical processors on that
// core.
std::string core_of(int processor) {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/";
    std::ifstream file(folder + "thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) return std::to_string(processor);
    return siblings;
}

struct Cores {
    int logical;
    int physical;
};

Cores count_cores() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return {hardware_threads(), hardware_threads()};
    std::set<std::string> cores;
    int logical = 0;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &mask)) continue;
        ++logical;
        cores.insert(core_of(processor));
    }
    const int quota = quota_cores();
    const int physical = static_cast<int>(cores.size());
    return {std::max(1, std::min(logical, quota)), std::max(1, std::min(physical, quota))};
}

#else

struct Cores {
    int logical;
    int physical;
};

Cores count_cores() { return {hardware_threads(), hardware_threads()}; }

#endif

}  // namespace

extern "C" {

uint32_t puna_abi_version(void) { return PUNA_ABI_VERSION; }

uint32_t puna_cpu_features(void) {
    uint32_t features = 0;
#if defined(__x86_64__)
    // __builtin_cpu_supports checks CPUID and XGETBV, so a feature counts only if the system saves its registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) features |= PUNA_CPU_AVX2;
    if (__builtin_cpu_supports("fma")) features |= PUNA_CPU_FMA;
    if (__builtin_cpu_supports("f16c")) features |= PUNA_CPU_F16C;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        features |= PUNA_CPU_AVX512;
    if (__builtin_cpu_supports("avx512vnni")) features |= PUNA_CPU_AVX512_VNNI;
    if (__builtin_cpu_supports("avx512bf16")) features |= PUNA_CPU_AVX512_BF16;
    // Compilers know this feature's name since GCC 11 only: CPUID leaf 7, subleaf 1, EAX bit 4. Its registers are
    // AVX2's.
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (features & PUNA_CPU_AVX2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1)
        features |= PUNA_CPU_AVX_VNNI;
#elif defined(__aarch64__)
    features |= PUNA_CPU_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) features |= PUNA_CPU_DOTPROD;
#else
    features |= PUNA_CPU_DOTPROD;  // every Apple processor that runs arm64 macOS has it
#endif
#endif
    return features;
}

int32_t puna_logical_cores(void) { return count_cores().logical; }

int32_t puna_physical_cores(void) { return count_cores().physical; }

}  // extern "C"
