// Rows in contiguous shares, one a thread.
#pragma once
#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace invert_fast {

// Fewer elements than this cost less than the start of a thread.
constexpr std::int64_t kElementsPerThread = 1 << 19;

// How many threads are worth starting for `rows` rows of `width` elements; `requested` 0 means every core.
inline std::int64_t useful_threads(std::int64_t rows, std::int64_t width, int requested) {
    const std::int64_t limit = requested > 0 ? requested : std::max(1u, std::thread::hardware_concurrency());
    const std::int64_t rows_each = (kElementsPerThread + width) / (width + 1);
    return std::max<std::int64_t>(1, std::min(limit, rows / rows_each));
}

// Calls work(begin, end) on disjoint shares that cover [0, rows).
template <class Work>
void parallel_rows(std::int64_t rows, std::int64_t threads, const Work& work) {
    const std::int64_t share = rows / threads, longer = rows % threads;  // the first `longer` shares have a row more
    const auto first = [=](std::int64_t thread) { return thread * share + std::min(thread, longer); };
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(threads - 1));
    std::int64_t next = 1;
    try {
        for (; next < threads; ++next) helpers.emplace_back(work, first(next), first(next + 1));
    } catch (const std::system_error&) {  // no thread left in the system: the remaining shares run here
    }
    work(0, first(1));
    if (next < threads) work(first(next), rows);
    for (auto& helper : helpers) helper.join();
}

}  // namespace invert_fast
