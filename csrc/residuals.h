// The relative L2 distance between predicted and observed hidden states.
#pragma once
#include <cstdint>

namespace invert_fast {

constexpr float kSmallestNorm = 1e-30f;  // an all-zero target must not divide by zero

// predictions [B, C, D] and targets [B, D]: fp32 or bf16 each, last dimension contiguous, strides in elements.
// out [B, C]: fp32, contiguous.
struct Residuals {
    const void* predictions;
    const void* targets;
    float* out;
    std::int64_t batch, candidates, width;
    std::int64_t prediction_stride_b, prediction_stride_c, target_stride_b;
    bool prediction_is_bf16, target_is_bf16;
    float* squared = nullptr;  // [B, C] fp32, contiguous: the squared distances too, where it is not null
};

// What a lane wants to know of its candidates, all [B]: tolerance in; best (the lowest of equals) and the first within
// the tolerance as columns, -1 for none; the runner-up's residual, +inf for none.
struct Closest {
    const float* tolerance;
    std::int64_t* best;
    float* runner_up;
    std::int64_t* first;
};

// out[b, c] = ||predictions[b, c] - targets[b]||_2 / max(||targets[b]||_2, kSmallestNorm), accumulated in fp32.
// A row is always summed in the same order, so `threads` (0: every core) does not change the result.
void residuals(const Residuals& op, int threads);

// The same, then `closest` from it. NaN counts as infinitely far, and is written so.
void closest(const Residuals& op, const Closest& closest, int threads);

}  // namespace invert_fast
