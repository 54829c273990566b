// Attention of a few independent tokens a lane against the lane's prefix, and its gradient: one optimisation step runs
// it once a layer each way.
#include "fan_out.h"

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"

namespace invert_fast {
namespace {

// Partial sums are spelled out, so that the loop vectorises without any -ffast-math flag.
INVERT_FAST_INLINE float dot(const float* a, const float* b, std::int64_t width) {
    constexpr int kLanes = 16;
    float sums[kLanes] = {};
    const std::int64_t whole = width - width % kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    float tail = 0;
    for (std::int64_t i = whole; i < width; ++i) tail += a[i] * b[i];
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0] + tail;
}

INVERT_FAST_INLINE void add_scaled(float* to, float factor, const float* from, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) to[i] += factor * from[i];
}

INVERT_FAST_INLINE const float* row(const HeadsView& view, std::int64_t b, std::int64_t h, std::int64_t n) {
    return view.data + b * view.stride_b + h * view.stride_h + n * view.stride_n;
}

// The part of its prefix that a lane's next token sees: storage row, first position, count.
struct Seen {
    std::int64_t slot, first, count;
};

INVERT_FAST_INLINE Seen seen(const FanOut& op, std::int64_t b) {
    const std::int64_t length = op.lengths ? op.lengths[b] : 0;
    const std::int64_t first = op.window > 0 ? std::max<std::int64_t>(0, length - op.window + 1) : 0;
    return {op.slots ? op.slots[b] : b, first, length - first};
}

INVERT_FAST_INLINE void forward_lane(const FanOut& op, std::int64_t b, float* out, float* weights) {
    const Seen prefix = seen(op, b);
    const std::int64_t groups = op.query_heads / op.key_heads;
    for (std::int64_t h = 0; h < op.query_heads; ++h) {
        const std::int64_t own = h / groups;
        for (std::int64_t n = 0; n < op.tokens; ++n) {
            const float* query = row(op.query, b, h, n);
            float* w = weights + ((b * op.query_heads + h) * op.tokens + n) * (op.longest + 1);
            float* to = out + ((b * op.tokens + n) * op.query_heads + h) * op.width;
            for (std::int64_t i = 0; i < prefix.count; ++i) {
                w[i] = op.scale * dot(query, row(op.prefix_key, prefix.slot, own, prefix.first + i), op.width);
            }
            w[prefix.count] = op.scale * dot(query, row(op.key, b, own, n), op.width);
            const float highest = *std::max_element(w, w + prefix.count + 1);
            float total = 0;
            for (std::int64_t i = 0; i <= prefix.count; ++i) total += w[i] = std::exp(w[i] - highest);
            for (std::int64_t i = 0; i <= prefix.count; ++i) w[i] /= total;
            std::fill(to, to + op.width, 0.0f);
            for (std::int64_t i = 0; i < prefix.count; ++i) {
                add_scaled(to, w[i], row(op.prefix_value, prefix.slot, own, prefix.first + i), op.width);
            }
            add_scaled(to, w[prefix.count], row(op.value, b, own, n), op.width);
        }
    }
}

INVERT_FAST_INLINE void backward_lane(const FanOut& op, const HeadsView& grad_out, std::int64_t b, const float* weights,
                                      float* grad_query, float* grad_key, float* grad_value) {
    const Seen prefix = seen(op, b);
    const std::int64_t groups = op.query_heads / op.key_heads;
    std::fill(grad_key + b * op.key_heads * op.tokens * op.width,
              grad_key + (b + 1) * op.key_heads * op.tokens * op.width, 0.0f);
    std::fill(grad_value + b * op.key_heads * op.tokens * op.width,
              grad_value + (b + 1) * op.key_heads * op.tokens * op.width, 0.0f);
    for (std::int64_t h = 0; h < op.query_heads; ++h) {
        const std::int64_t own = h / groups;
        for (std::int64_t n = 0; n < op.tokens; ++n) {
            const float *query = row(op.query, b, h, n), *grad = row(grad_out, b, h, n);
            const float* w = weights + ((b * op.query_heads + h) * op.tokens + n) * (op.longest + 1);
            float* to_query = grad_query + ((b * op.query_heads + h) * op.tokens + n) * op.width;
            const std::int64_t mine = ((b * op.key_heads + own) * op.tokens + n) * op.width;
            // mean = sum_i w_i (grad . v_i); the softmax passes w_i (grad . v_i - mean) on to score i
            const float own_product = dot(grad, row(op.value, b, own, n), op.width);
            float mean = w[prefix.count] * own_product;
            for (std::int64_t i = 0; i < prefix.count; ++i) {
                mean += w[i] * dot(grad, row(op.prefix_value, prefix.slot, own, prefix.first + i), op.width);
            }
            std::fill(to_query, to_query + op.width, 0.0f);
            for (std::int64_t i = 0; i < prefix.count; ++i) {
                const float product = dot(grad, row(op.prefix_value, prefix.slot, own, prefix.first + i), op.width);
                add_scaled(to_query, op.scale * w[i] * (product - mean),
                           row(op.prefix_key, prefix.slot, own, prefix.first + i), op.width);
            }
            const float to_score = op.scale * w[prefix.count] * (own_product - mean);
            add_scaled(to_query, to_score, row(op.key, b, own, n), op.width);
            add_scaled(grad_key + mine, to_score, query, op.width);
            add_scaled(grad_value + mine, w[prefix.count], grad, op.width);
        }
    }
}

INVERT_FAST_INLINE void forward_range(const FanOut& op, float* out, float* weights, std::int64_t begin,
                                      std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) forward_lane(op, b, out, weights);
}
constexpr Clones<forward_range> forward_lanes;

INVERT_FAST_INLINE void backward_range(const FanOut& op, const HeadsView& grad_out, const float* weights,
                                       float* grad_query, float* grad_key, float* grad_value, std::int64_t begin,
                                       std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
        backward_lane(op, grad_out, b, weights, grad_query, grad_key, grad_value);
    }
}
constexpr Clones<backward_range> backward_lanes;

// out [B, N, Hq, d] and weights [B, Hq, N, longest + 1] (softmax over the prefix seen, then the token itself), contiguous.
void fan_out_forward(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                     const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, std::uintptr_t out,
                     std::uintptr_t weights, int threads) {
    const FanOut op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    if (op.batch == 0) return;
    const std::int64_t work = op.query_heads * op.tokens * (op.longest + 1) * op.width;
    parallel_rows(op.batch, useful_threads(op.batch, work, threads), [&](std::int64_t begin, std::int64_t end) {
        forward_lanes(op, reinterpret_cast<float*>(out), reinterpret_cast<float*>(weights), begin, end);
    });
}

// grad_out: a view of [B, Hq, N, d]; grads: by query [B, Hq, N, d], key and value [B, Hkv, N, d], contiguous.
void fan_out_backward(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                      const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, const View& grad_out,
                      std::uintptr_t weights, const std::array<std::uintptr_t, 3>& grads, int threads) {
    const FanOut op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    if (op.batch == 0) return;
    const std::int64_t work = op.query_heads * op.tokens * (op.longest + 1) * op.width;
    const auto to = [&](std::size_t i) { return reinterpret_cast<float*>(grads[i]); };
    parallel_rows(op.batch, useful_threads(op.batch, work, threads), [&](std::int64_t begin, std::int64_t end) {
        backward_lanes(op, heads_view(grad_out), reinterpret_cast<const float*>(weights), to(0), to(1), to(2), begin,
                       end);
    });
}

const Binding binding{[](py::module_& m) {
    m.def("fan_out_forward", &fan_out_forward, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "out_ptr"_a, "weights_ptr"_a, "threads"_a = 0, Unlocked(),
          "Attention of N tokens a lane against its prefix and itself, see csrc/fan_out.h; all fp32. views: query, key, "
          "value, prefix key and prefix value as (pointer, strides of batch, head, token); sizes: B, Hq, Hkv, N, d and "
          "the longest prefix; window 0: all of it; null pointers for no lengths and no slots.");
    m.def("fan_out_backward", &fan_out_backward, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "grad_out"_a, "weights_ptr"_a, "grad_ptrs"_a, "threads"_a = 0, Unlocked(),
          "Gradients by query, key and value (grad_ptrs) from that of the output and the weights of the forward pass.");
}};

}  // namespace

HeadsView heads_view(const View& view) {
    return {reinterpret_cast<const float*>(view[0]), view[1], view[2], view[3]};
}

FanOut pack_fan_out(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                    const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale) {
    for (const std::int64_t size : sizes) require_non_negative("a size", size);
    require_non_negative("window", window);
    const auto [B, Hq, Hkv, N, d, longest] = sizes;
    return {heads_view(views[0]),
            heads_view(views[1]),
            heads_view(views[2]),
            heads_view(views[3]),
            heads_view(views[4]),
            reinterpret_cast<const std::int64_t*>(lengths),
            reinterpret_cast<const std::int64_t*>(slots),
            B,
            Hq,
            Hkv,
            N,
            d,
            longest,
            window,
            scale};
}

}  // namespace invert_fast
