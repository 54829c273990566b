// The arguments of attention against each lane's prefix.
#pragma once
#include <array>
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

using View = std::array<std::int64_t, 4>;  // data_ptr() and the strides of batch, head and token
HeadsView heads_view(const View& view);

// views: in the order of FanOut; sizes: B, Hq, Hkv, N, d and the longest prefix.
FanOut pack_fan_out(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                    const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale);

}  // namespace invert_fast
