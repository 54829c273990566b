// One scalar of a hidden state, read as fp32.
#pragma once
#include <cstdint>
#include <cstring>

namespace invert_fast {

using bf16 = std::uint16_t;  // the upper half of an fp32, so widening is exact

inline float widen(float value) { return value; }

inline float widen(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float widened;
    std::memcpy(&widened, &bits, sizeof widened);
    return widened;
}

}  // namespace invert_fast
