// One Adam step of many independent vectors, each at a step count of its own.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"

namespace invert_fast {
namespace {

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

constexpr double kPi = 3.14159265358979323846;
constexpr float kClipEps = 1e-6f;  // as in torch.nn.utils.clip_grad_norm_

INVERT_FAST_INLINE float norm(const float* row, std::int64_t width) {
    constexpr int kLanes = 32;  // partial sums, so that the loop vectorises and rounds less
    float sums[kLanes] = {};
    const std::int64_t whole = width - width % kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += row[i + lane] * row[i + lane];
    }
    float total = 0;
    for (std::int64_t i = whole; i < width; ++i) total += row[i] * row[i];
    for (const float sum : sums) total += sum;
    return std::sqrt(total);
}

INVERT_FAST_INLINE void step_lane(const AdamStep& op, std::int64_t b) {
    float* const proxy = op.proxy + b * op.proxy_stride;
    float* const mean = op.mean + b * op.mean_stride;
    float* const square = op.square + b * op.square_stride;
    const float* const grad = op.grad + b * op.grad_stride;
    const auto taken = static_cast<double>(op.steps[b]);

    const auto move = static_cast<float>(op.lr * (1 + std::cos(kPi * std::min(taken / op.total_steps, 1.0))) / 2);
    const auto pull = static_cast<float>(op.weight_decay);
    const auto mean_bias = static_cast<float>(1 - std::pow(op.beta1, taken + 1));
    const auto square_bias = static_cast<float>(1 - std::pow(op.beta2, taken + 1));
    const auto beta1 = static_cast<float>(op.beta1), rest1 = static_cast<float>(1 - op.beta1);
    const auto beta2 = static_cast<float>(op.beta2), rest2 = static_cast<float>(1 - op.beta2);
    const auto eps = static_cast<float>(op.eps);
    const auto clip = static_cast<float>(op.clip);
    const float shrink = std::isfinite(clip) ? std::min(clip / (norm(grad, op.width) + kClipEps), 1.0f) : 1.0f;

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep  // the tensors of one step do not overlap
#endif
    for (std::int64_t i = 0; i < op.width; ++i) {
        const float g = grad[i] * shrink + pull * proxy[i];
        const float m = beta1 * mean[i] + rest1 * g;
        const float s = beta2 * square[i] + rest2 * g * g;
        mean[i] = m;
        square[i] = s;
        proxy[i] -= move * (m / mean_bias) / (std::sqrt(s / square_bias) + eps);
    }
    ++op.steps[b];
}

INVERT_FAST_INLINE void step_range(const AdamStep& op, std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
        if (op.active[b]) step_lane(op, b);
    }
}
constexpr Clones<step_range> step_lanes;

// In place: clips the gradient of every active lane to the norm `clip`, updates its moments, and moves its proxy at the
// learning rate lr (1 + cos(pi step / total_steps)) / 2. Lanes that are not active are not touched.
void adam_step(std::uintptr_t proxy, std::uintptr_t grad, std::uintptr_t mean, std::uintptr_t square,
               std::uintptr_t steps, std::uintptr_t active, std::int64_t B, std::int64_t D, std::int64_t proxy_stride,
               std::int64_t grad_stride, std::int64_t mean_stride, std::int64_t square_stride, double lr,
               double total_steps, double clip, double weight_decay, double beta1, double beta2, double eps,
               int threads) {
    require_non_negative("B", B);
    require_non_negative("D", D);
    require_non_negative("threads", threads);
    const AdamStep op{reinterpret_cast<float*>(proxy),
                      reinterpret_cast<const float*>(grad),
                      reinterpret_cast<float*>(mean),
                      reinterpret_cast<float*>(square),
                      reinterpret_cast<std::int64_t*>(steps),
                      reinterpret_cast<const std::uint8_t*>(active),
                      B,
                      D,
                      proxy_stride,
                      grad_stride,
                      mean_stride,
                      square_stride,
                      lr,
                      total_steps,
                      clip,
                      weight_decay,
                      beta1,
                      beta2,
                      eps};
    if (B == 0) return;
    parallel_rows(B, useful_threads(B, D, threads),
                  [&op](std::int64_t begin, std::int64_t end) { step_lanes(op, begin, end); });
}

const Binding binding{[](py::module_& m) {
    m.def("adam_step", &adam_step, "proxy_ptr"_a, "grad_ptr"_a, "mean_ptr"_a, "square_ptr"_a, "steps_ptr"_a,
          "active_ptr"_a, "B"_a, "D"_a, "proxy_stride"_a, "grad_stride"_a, "mean_stride"_a, "square_stride"_a, "lr"_a,
          "total_steps"_a, "clip"_a, "weight_decay"_a, "beta1"_a, "beta2"_a, "eps"_a, "threads"_a = 0, Unlocked(),
          "One clipped, scheduled Adam step of every active lane, in place; all tables fp32 [B, D], steps [B] int64, "
          "active [B] bytes, clip=inf does not clip.");
}};

}  // namespace
}  // namespace invert_fast
