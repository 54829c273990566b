// e^x without a branch, so that loops over it are vectorised.
#pragma once
#include <cstdint>
#include <cstring>

#include "clones.h"

namespace invert_fast {

// To two units in the last place for |x| < 87; of no meaning beyond, and for NaN.
INVERT_FAST_INLINE float exponential(float x) {
    constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // exact product with n
    constexpr float kRound = 12582912.0f;  // 1.5 2^23: what is added to it is rounded to a whole number
    const float shifted = x * kLog2e + kRound, n = shifted - kRound;
    const float r = x - n * kLn2High - n * kLn2Low;
    float p = 1.9875691500e-4f;  // minimax on |r| <= ln 2 / 2 (Cephes)
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    std::uint32_t bits, scale;
    std::memcpy(&bits, &shifted, sizeof bits);
    std::memcpy(&scale, &p, sizeof scale);
    scale += bits << 23;  // the low bits of `shifted` are n: p 2^n
    std::memcpy(&p, &scale, sizeof p);
    return p;
}

}  // namespace invert_fast
