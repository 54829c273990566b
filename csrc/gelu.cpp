#include "gelu.h"

#include <algorithm>
#include <cstring>

#include "clones.h"
#include "parallel.h"

namespace invert_fast {
namespace {

// e^x to two units in the last place for |x| < 87, without a branch, so that loops over it are vectorised.
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

constexpr float kSlope = 1.59576912f, kCube = 0.044715f;  // 2 sqrt(2/pi)
constexpr float kFar = 9.9f;  // beyond it the sigmoid is 1, or 1e-37: nothing of x is left but x itself, or zero

INVERT_FAST_INLINE float at_least(float x, float least) { return x < least ? least : x; }  // NaN stays
INVERT_FAST_INLINE float clamped(float x) {
    x = at_least(x, -kFar);
    return x > kFar ? kFar : x;
}

INVERT_FAST_INLINE float sigmoid(float x) {
    return 1.0f / (1.0f + exponential(-kSlope * (x + kCube * x * x * x)));
}

INVERT_FAST_CLONES
void forward_of(const float* __restrict x, float* __restrict out, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = at_least(x[i], -kFar) * sigmoid(clamped(x[i]));
}

INVERT_FAST_CLONES
void backward_of(const float* __restrict grad, const float* __restrict given, float* __restrict out,
                 std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        const float x = clamped(given[i]), s = sigmoid(x);
        out[i] = grad[i] * (s + x * s * (1.0f - s) * kSlope * (1.0f + 3.0f * kCube * x * x));
    }
}

}  // namespace

void gelu(const float* x, float* out, std::int64_t count, int threads) {
    parallel_rows(count, useful_threads(count, 1, threads),
                  [=](std::int64_t begin, std::int64_t end) { forward_of(x + begin, out + begin, end - begin); });
}

void gelu_backward(const float* grad, const float* x, float* out, std::int64_t count, int threads) {
    parallel_rows(count, useful_threads(count, 1, threads), [=](std::int64_t begin, std::int64_t end) {
        backward_of(grad + begin, x + begin, out + begin, end - begin);
    });
}

}  // namespace invert_fast
