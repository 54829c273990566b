#pragma once
#include <cstdint>
#include <vector>

namespace invert_fast {

// Zeros that start at a cache line, so that no load of a row spans two.
class AlignedFloats {
   public:
    explicit AlignedFloats(std::int64_t size) : storage_(static_cast<std::size_t>(size + kLineFloats)) {
        constexpr std::uintptr_t kLine = kLineFloats * sizeof(float);
        const auto start = reinterpret_cast<std::uintptr_t>(storage_.data());
        values_ = storage_.data() + (kLine - start % kLine) % kLine / sizeof(float);
    }
    AlignedFloats(const AlignedFloats&) = delete;
    AlignedFloats& operator=(const AlignedFloats&) = delete;
    float* get() const { return values_; }

   private:
    static constexpr std::int64_t kLineFloats = 16;
    std::vector<float> storage_;
    float* values_;
};

}  // namespace invert_fast
