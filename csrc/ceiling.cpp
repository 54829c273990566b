// What this machine can do at most, for benchmarks to compare with.
#include <algorithm>
#include <chrono>
#include <cstdint>

#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "vector.h"

namespace invert_fast {
namespace {

template <int floats>
INVERT_FAST_INLINE float add_differences(std::int64_t count) {
    constexpr int kSums = 8;  // independent of each other, enough to hide the latency of an addition
    const float first[kMostFloats] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    Vector<floats> x, sums[kSums];
    x.load(first);
    for (std::int64_t i = 0; i < count; i += floats * kSums) {
        for (auto& total : sums) total.add_distance(x, total);
    }
    float total = 0;
    for (const auto& one : sums) total += sum(one);
    return total;
}

constexpr Clones<add_differences<4>, add_differences<8>, add_differences<16>> add;

double seconds_of_l1(std::int64_t count, int threads) {
    const std::int64_t shares = std::max(1, threads);
    const auto start = std::chrono::steady_clock::now();
    parallel_rows(shares, shares, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t share = begin; share < end; ++share) {
            volatile float kept = add(count);  // or the compiler would leave the work out
            (void)kept;
        }
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const Binding binding{[](py::module_& m) {
    m.def("seconds_of_l1", &seconds_of_l1, "count"_a, "threads"_a = 1, Unlocked(),
          "Seconds that threads take to add count absolute differences each in registers: the ceiling of L1.");
}};

}  // namespace
}  // namespace invert_fast
