// The `residuals` op on a GPU: one warp a row, both norms in one pass over the row.
#include "residuals.cuh"

namespace invert_fast {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;

// `count` neighbouring scalars, moved by one load.
template <class Scalar, int count>
struct alignas(sizeof(Scalar) * count) Pack {
    Scalar values[count];
};

__device__ float widen(float value) { return value; }
__device__ float widen(std::uint16_t bf16) { return __uint_as_float(static_cast<unsigned>(bf16) << 16); }

__device__ float warp_sum(float value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

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
    const auto aligned = [](const void* pointer, std::size_t scalar) {
        return reinterpret_cast<std::uintptr_t>(pointer) % (scalar * count) == 0;
    };
    return aligned(op.predictions, sizeof(Prediction)) && aligned(op.targets, sizeof(Target)) &&
           op.width % count == 0 && op.prediction_stride_b % count == 0 && op.prediction_stride_c % count == 0 &&
           op.target_stride_b % count == 0;
}

template <class Prediction, class Target>
void launch(const Residuals& op, cudaStream_t stream) {
    constexpr std::int64_t kMostBlocks = 1 << 20;  // further rows are reached by the stride of the grid
    const std::int64_t rows = op.batch * op.candidates;
    const std::int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
    const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
    if (packs<Prediction, Target, 4>(op)) {
        residual_rows<Prediction, Target, 4><<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(op);
    } else {
        residual_rows<Prediction, Target, 1><<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(op);
    }
}

}  // namespace

cudaError_t residuals(const Residuals& op, cudaStream_t stream) {
    if (op.batch * op.candidates == 0) return cudaSuccess;
    if (op.prediction_is_bf16) {
        op.target_is_bf16 ? launch<std::uint16_t, std::uint16_t>(op, stream) : launch<std::uint16_t, float>(op, stream);
    } else {
        op.target_is_bf16 ? launch<float, std::uint16_t>(op, stream) : launch<float, float>(op, stream);
    }
    return cudaGetLastError();
}

}  // namespace invert_fast
