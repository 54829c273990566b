// The nearest few of a stream of distances, ties to the lower id, in any order of arrival.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "clones.h"

namespace invert_fast {

// Distance and id as one integer that sorts by distance, then id: sorting needs no ties rule of its own.
using Ranked = std::uint64_t;

INVERT_FAST_INLINE Ranked ranked(float distance, std::uint32_t id) {
    distance += 0.0f;  // -0 is 0
    std::uint32_t bits;
    std::memcpy(&bits, &distance, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return static_cast<Ranked>(bits) << 32 | id;
}

inline float distance_of(Ranked entry) {
    auto bits = static_cast<std::uint32_t>(entry >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    float distance;
    std::memcpy(&distance, &bits, sizeof distance);
    return distance;
}

inline std::int64_t id_of(Ranked entry) { return static_cast<std::uint32_t>(entry); }

// Keeps up to twice `count` entries and drops the farther half when full: constant time an entry, for any count.
class Best {
   public:
    explicit Best(std::size_t count) : count_(count) {}

    // Whether an entry at this distance could still be kept; never for +inf or NaN.
    INVERT_FAST_INLINE bool wants(float distance) const { return distance <= limit_; }

    // Whether no distance at or above this bound could still be kept; never for NaN.
    INVERT_FAST_INLINE bool rules_out(float bound) const { return bound > limit_; }

    void add(float distance, std::uint32_t id) {
        entries_.push_back(ranked(distance, id));
        if (entries_.size() >= 2 * count_) shrink();
    }

    void add(const Best& other) {
        for (const Ranked entry : other.entries_) {
            entries_.push_back(entry);
            if (entries_.size() >= 2 * count_) shrink();
        }
    }

    // The kept entries, nearest first.
    const std::vector<Ranked>& sorted() {
        shrink();
        std::sort(entries_.begin(), entries_.end());
        return entries_;
    }

   private:
    void shrink() {
        if (entries_.size() <= count_) return;
        const auto last = entries_.begin() + static_cast<std::ptrdiff_t>(count_ - 1);
        std::nth_element(entries_.begin(), last, entries_.end());
        entries_.resize(count_);
        limit_ = distance_of(entries_.back());
    }

    std::size_t count_;
    float limit_ = std::numeric_limits<float>::max();
    std::vector<Ranked> entries_;
};

}  // namespace invert_fast
