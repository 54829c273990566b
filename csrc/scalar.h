// One scalar of a hidden state, read as fp32.
#pragma once
#include <cstdint>
#include <cstring>

#include "clones.h"

namespace invert_fast {

using bf16 = std::uint16_t;  // the upper half of an fp32, so widening is exact

INVERT_FAST_INLINE float widen(float value) { return value; }

INVERT_FAST_INLINE float widen(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float widened;
    std::memcpy(&widened, &bits, sizeof widened);
    return widened;
}

}  // namespace invert_fast
