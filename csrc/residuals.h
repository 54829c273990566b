// The relative L2 distance between predicted and observed hidden states.
#pragma once
#include <cstdint>

namespace invert_fast {

constexpr float kSmallestNorm = 1e-30f;  // an all-zero target must not divide by zero

// out[b, c] = ||predictions[b, c] - targets[b]||_2 / max(||targets[b]||_2, kSmallestNorm), accumulated in fp32.
// predictions [B, C, D] and targets [B, D]: fp32 or bf16 each, last dimension contiguous, strides in elements.
// out [B, C]: fp32, contiguous.
struct Residuals {
    const void* predictions;
    const void* targets;
    float* out;
    std::int64_t batch, candidates, width;
    std::int64_t prediction_stride_b, prediction_stride_c, target_stride_b;
    bool prediction_is_bf16, target_is_bf16;
};

}  // namespace invert_fast
