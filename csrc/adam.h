// One Adam step of many independent vectors, each at a step count of its own.
#pragma once
#include <cstdint>

namespace invert_fast {

// proxy, grad, mean and square [B, D] fp32: last dimension contiguous, strides in elements. steps [B] int64 (taken so
// far), active [B] bytes.
struct AdamStep {
    float* proxy;
    const float* grad;
    float* mean;    // of the gradients
    float* square;  // of the gradients, mean
    std::int64_t* steps;
    const std::uint8_t* active;
    std::int64_t batch, width;
    std::int64_t proxy_stride, grad_stride, mean_stride, square_stride;
    double lr, total_steps, clip, weight_decay, beta1, beta2, eps;  // clip +inf: not at all
};

// In place: clips the gradient of every active lane to the norm `clip`, updates its moments, and moves its proxy at the
// learning rate lr (1 + cos(pi step / total_steps)) / 2. Lanes that are not active are not touched.
void adam_step(const AdamStep& op, int threads);

}  // namespace invert_fast
