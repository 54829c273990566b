// GELU in its tanh form, x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))), and its gradient.
#pragma once
#include <cstdint>

namespace invert_fast {

// All contiguous, `count` floats each; out is neither x nor grad. Every element comes out the same whatever stands beside it
// and however many threads share the work (0: every core).
void gelu(const float* x, float* out, std::int64_t count, int threads);
void gelu_backward(const float* grad, const float* x, float* out, std::int64_t count, int threads);

}  // namespace invert_fast
