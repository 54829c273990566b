// What this machine can do at most, for benchmarks to compare with.
#pragma once
#include <cstdint>

namespace invert_fast {

// Seconds that `threads` threads take to add `count` absolute differences each, all of it in registers.
double seconds_of_l1(std::int64_t count, int threads);

}  // namespace invert_fast
