// Attention of a few independent tokens a lane against the lane's prefix, and its gradient: one optimisation step runs
// it once a layer each way.
#pragma once
#include <cstdint>

namespace invert_fast {

// A [B, heads, N, d] tensor: d contiguous, strides in elements.
struct HeadsView {
    const float* data;
    std::int64_t stride_b, stride_h, stride_n;
};

// query [B, Hq, N, d]; key, value [B, Hkv, N, d]: each token's own; prefix_key, prefix_value [S, Hkv, M, d] storage
// of which lane b reads row slots[b] (null: row b) up to lengths[b] (null: nothing).
// Token n sees the prefix, as far as it lies less than `window` back (0: all of it), and itself.
struct FanOut {
    HeadsView query, key, value, prefix_key, prefix_value;
    const std::int64_t *lengths, *slots;
    std::int64_t batch, query_heads, key_heads, tokens, width, longest, window;
    float scale;
};

// out [B, N, Hq, d] and weights [B, Hq, N, longest + 1] (softmax over the prefix seen, then the token itself), contiguous.
void fan_out_forward(const FanOut& op, float* out, float* weights, int threads);

// grad_out: a view of [B, Hq, N, d]; grad_query [B, Hq, N, d] and grad_key, grad_value [B, Hkv, N, d], contiguous.
void fan_out_backward(const FanOut& op, const HeadsView& grad_out, const float* weights, float* grad_query,
                      float* grad_key, float* grad_value, int threads);

}  // namespace invert_fast
