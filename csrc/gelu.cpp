// GELU in its tanh form, x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))), and its gradient.
#include <cstdint>

#include "arguments.h"
#include "binding.h"
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

// Contiguous, `count` floats each; out is neither x nor grad. Every element comes out the same whatever stands beside it
// and however many threads share the work.
void gelu(std::uintptr_t x_ptr, std::uintptr_t out_ptr, std::int64_t count, int threads) {
    require_non_negative("count", count);
    const auto* x = reinterpret_cast<const float*>(x_ptr);
    auto* out = reinterpret_cast<float*>(out_ptr);
    parallel_rows(count, useful_threads(count, 1, threads),
                  [=](std::int64_t begin, std::int64_t end) { forward_of(x + begin, out + begin, end - begin); });
}

void gelu_backward(std::uintptr_t grad_ptr, std::uintptr_t x_ptr, std::uintptr_t out_ptr, std::int64_t count,
                   int threads) {
    require_non_negative("count", count);
    const auto *grad = reinterpret_cast<const float*>(grad_ptr), *x = reinterpret_cast<const float*>(x_ptr);
    auto* out = reinterpret_cast<float*>(out_ptr);
    parallel_rows(count, useful_threads(count, 1, threads), [=](std::int64_t begin, std::int64_t end) {
        backward_of(grad + begin, x + begin, out + begin, end - begin);
    });
}

const Binding binding{[](py::module_& m) {
    m.def("gelu", &gelu, "x_ptr"_a, "out_ptr"_a, "count"_a, "threads"_a = 0, Unlocked(),
          "GELU in its tanh form of count floats.");
    m.def("gelu_backward", &gelu_backward, "grad_ptr"_a, "x_ptr"_a, "out_ptr"_a, "count"_a, "threads"_a = 0, Unlocked(),
          "Its gradient by x, from x and the gradient by the output.");
}};

}  // namespace
}  // namespace invert_fast
