#include "residuals.h"

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "scalar.h"

namespace invert_fast {
namespace {

// sum_i term(i)^2. The partial sums are spelled out, so that the loop vectorises without any -ffast-math flag
// (NaN stays NaN), hides the latency of the additions, and rounds less than one long sum.
template <class Term>
INVERT_FAST_INLINE float squares(std::int64_t width, Term term) {
    constexpr int kLanes = 32;
    float sums[kLanes] = {};
    const std::int64_t whole = width - width % kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float x = term(i + lane);
            sums[lane] += x * x;
        }
    }
    float tail = 0;
    for (std::int64_t i = whole; i < width; ++i) tail += term(i) * term(i);
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0] + tail;
}

// Rows [begin, end) of the B*C rows.
template <class Prediction, class Target>
INVERT_FAST_INLINE void residual_rows(const Residuals& op, std::int64_t begin, std::int64_t end) {
    std::int64_t seen = -1;
    float scale = 0;
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t b = row / op.candidates, c = row % op.candidates;
        const auto* target = static_cast<const Target*>(op.targets) + b * op.target_stride_b;
        const auto* prediction = static_cast<const Prediction*>(op.predictions) + b * op.prediction_stride_b +
                                 c * op.prediction_stride_c;
        if (b != seen) {
            scale = squares(op.width, [=](std::int64_t i) INVERT_FAST_INLINED { return widen(target[i]); });
            scale = std::max(std::sqrt(scale), kSmallestNorm);
            seen = b;
        }
        const float distance =
            squares(op.width, [=](std::int64_t i) INVERT_FAST_INLINED { return widen(prediction[i]) - widen(target[i]); });
        op.out[row] = std::sqrt(distance) / scale;
    }
}

constexpr Clones<residual_rows<float, float>> rows_f32_f32;
constexpr Clones<residual_rows<float, bf16>> rows_f32_bf16;
constexpr Clones<residual_rows<bf16, float>> rows_bf16_f32;
constexpr Clones<residual_rows<bf16, bf16>> rows_bf16_bf16;

// A row is always summed in the same order, so `threads` does not change the result.
void residuals(std::uintptr_t predictions, std::uintptr_t targets, std::uintptr_t out, std::int64_t B, std::int64_t C,
               std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c, std::int64_t target_stride_b,
               bool pred_is_bf16, bool target_is_bf16, int threads) {
    const Residuals op = pack_residuals(predictions, targets, out, B, C, D, pred_stride_b, pred_stride_c,
                                        target_stride_b, pred_is_bf16, target_is_bf16);
    require_non_negative("threads", threads);
    const std::int64_t rows = B * C;
    if (rows == 0) return;
    parallel_rows(rows, useful_threads(rows, D, threads), [&op](std::int64_t begin, std::int64_t end) {
        if (op.prediction_is_bf16) {
            op.target_is_bf16 ? rows_bf16_bf16(op, begin, end) : rows_bf16_f32(op, begin, end);
        } else {
            op.target_is_bf16 ? rows_f32_bf16(op, begin, end) : rows_f32_f32(op, begin, end);
        }
    });
}

const Binding binding{[](py::module_& m) {
    m.def("residuals", &residuals, "predictions_ptr"_a, "targets_ptr"_a, "out_ptr"_a, "B"_a, "C"_a, "D"_a,
          "pred_stride_b"_a, "pred_stride_c"_a, "target_stride_b"_a, "pred_is_bf16"_a, "target_is_bf16"_a,
          "threads"_a = 0, Unlocked(),
          "out[b, c] = ||predictions[b, c] - targets[b]|| / max(||targets[b]||, 1e-30); predictions [B, C, D] and "
          "targets [B, D] are fp32 or bf16, out [B, C] is contiguous fp32.");
}};

}  // namespace
}  // namespace invert_fast
