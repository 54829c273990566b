#include "adam.h"

#include <algorithm>
#include <cmath>

#include "clones.h"
#include "parallel.h"

namespace invert_fast {
namespace {

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

}  // namespace

void adam_step(const AdamStep& op, int threads) {
    if (op.batch == 0) return;
    parallel_rows(op.batch, useful_threads(op.batch, op.width, threads),
                  [&op](std::int64_t begin, std::int64_t end) { step_lanes(op, begin, end); });
}

}  // namespace invert_fast
