// Rows in contiguous shares, one a thread.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace invert_fast {

// GOMP_parallel of an OpenMP runtime: runs work(data) on every thread of a team and waits for all of them.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
// That of the program around us, where it has one. Its idle threads spin for a while before they sleep; threads of our
// own would have to share the cores with them.
inline Team shared_team = nullptr;

// Fewer elements than this cost less than a thread: one to start, or one of a team that waits.
inline std::int64_t elements_per_thread() { return shared_team ? 1 << 17 : 1 << 19; }

// How many threads are worth starting for `rows` rows of `width` elements; `requested` 0 means every core.
inline std::int64_t useful_threads(std::int64_t rows, std::int64_t width, int requested) {
    const std::int64_t limit = requested > 0 ? requested : std::max(1u, std::thread::hardware_concurrency());
    const std::int64_t rows_each = (elements_per_thread() + width) / (width + 1);
    return std::max<std::int64_t>(1, std::min(limit, rows / rows_each));
}

// Calls work(begin, end) on disjoint shares that cover [0, rows).
template <class Work>
void parallel_rows(std::int64_t rows, std::int64_t threads, const Work& work) {
    struct Shares {
        const Work& work;
        std::int64_t rows, threads;
        std::atomic<std::int64_t> next{0};

        void run() {  // a team may be smaller than was asked for
            const std::int64_t share = rows / threads, longer = rows % threads;  // the first `longer` have a row more
            const auto first = [=](std::int64_t thread) { return thread * share + std::min(thread, longer); };
            for (std::int64_t mine = next++; mine < threads; mine = next++) work(first(mine), first(mine + 1));
        }
    } shares{work, rows, threads};
    if (threads == 1) return shares.run();
    if (shared_team) {
        const auto run = [](void* data) { static_cast<Shares*>(data)->run(); };
        return shared_team(run, &shares, static_cast<unsigned>(threads), 0);
    }
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(threads - 1));
    try {
        for (std::int64_t thread = 1; thread < threads; ++thread) helpers.emplace_back([&shares] { shares.run(); });
    } catch (const std::system_error&) {  // no thread left in the system: those there are do all
    }
    shares.run();
    for (auto& helper : helpers) helper.join();
}

}  // namespace invert_fast
