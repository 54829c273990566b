#include "gelu.h"

#include <algorithm>

#include "clones.h"
#include "exponential.h"
#include "parallel.h"

namespace invert_fast {
namespace {

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

INVERT_FAST_INLINE void forward_body(const float* __restrict x, float* __restrict out, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = at_least(x[i], -kFar) * sigmoid(clamped(x[i]));
}
constexpr Clones<forward_body> forward_of;

INVERT_FAST_INLINE void backward_body(const float* __restrict grad, const float* __restrict given,
                                      float* __restrict out, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        const float x = clamped(given[i]), s = sigmoid(x);
        out[i] = grad[i] * (s + x * s * (1.0f - s) * kSlope * (1.0f + 3.0f * kCube * x * x));
    }
}
constexpr Clones<backward_body> backward_of;

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
