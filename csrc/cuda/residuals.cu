// The `residuals` op on a GPU: one warp a row, both norms in one pass over the row.
#include "residuals.cuh"

#include "kernel.cuh"

namespace invert_fast {
namespace {

constexpr int kWarpsPerBlock = 4;

template <class Prediction, class Target, int count>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock) residual_rows(Residuals op) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t rows = op.batch * op.candidates;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock;
    for (std::int64_t row = blockIdx.x * static_cast<std::int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp; row < rows;
         row += warps) {
        const std::int64_t b = row / op.candidates, c = row % op.candidates;
        const auto* prediction = reinterpret_cast<const Pack<Prediction, count>*>(
            static_cast<const Prediction*>(op.predictions) + b * op.prediction_stride_b + c * op.prediction_stride_c);
        const auto* target = reinterpret_cast<const Pack<Target, count>*>(static_cast<const Target*>(op.targets) +
                                                                          b * op.target_stride_b);
        float distance = 0, scale = 0;
#pragma unroll 4
        for (std::int64_t i = lane; i < op.width / count; i += kWarp) {
            const auto p = prediction[i];
            const auto t = target[i];
#pragma unroll
            for (int j = 0; j < count; ++j) {
                const float expected = widen(t.values[j]);
                const float difference = widen(p.values[j]) - expected;
                distance += difference * difference;
                scale += expected * expected;
            }
        }
        distance = warp_sum(distance);
        scale = warp_sum(scale);
        if (lane == 0) op.out[row] = sqrtf(distance) / fmaxf(sqrtf(scale), kSmallestNorm);
    }
}

// Whether every row starts at, and holds a whole number of, packs of `count` scalars.
template <class Prediction, class Target, int count>
bool packs(const Residuals& op) {
    const auto* predictions = static_cast<const Prediction*>(op.predictions);
    const auto* targets = static_cast<const Target*>(op.targets);
    constexpr std::int64_t prediction_bytes = sizeof(Prediction) * count, target_bytes = sizeof(Target) * count;
    return op.width % count == 0 && rows_start_at(predictions, op.prediction_stride_b, prediction_bytes) &&
           rows_start_at(predictions, op.prediction_stride_c, prediction_bytes) &&
           rows_start_at(targets, op.target_stride_b, target_bytes);
}

template <class Prediction, class Target>
cudaError_t launch(const Residuals& op, cudaStream_t stream) {
    constexpr std::int64_t kMostBlocks = 1 << 20;  // further rows are reached by the stride of the grid
    const std::int64_t rows = op.batch * op.candidates;
    const std::int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
    const auto kernel = packs<Prediction, Target, 4>(op) ? residual_rows<Prediction, Target, 4>
                                                         : residual_rows<Prediction, Target, 1>;
    return enqueue(kernel, blocks < kMostBlocks ? blocks : kMostBlocks, kWarp * kWarpsPerBlock, stream, op);
}

}  // namespace

cudaError_t residuals(const Residuals& op, cudaStream_t stream) {
    if (op.batch * op.candidates == 0) return cudaSuccess;
    if (op.prediction_is_bf16) {
        return op.target_is_bf16 ? launch<std::uint16_t, std::uint16_t>(op, stream)
                                 : launch<std::uint16_t, float>(op, stream);
    }
    return op.target_is_bf16 ? launch<float, std::uint16_t>(op, stream) : launch<float, float>(op, stream);
}

}  // namespace invert_fast
