// What the kernels share: wide loads, sums of a warp, and how a kernel is queued.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace invert_fast {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWideLoad = 16;  // bytes that one instruction moves on every GPU

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(std::uint16_t bf16) { return __uint_as_float(static_cast<unsigned>(bf16) << 16); }

// `count` neighbouring scalars, moved by one load (or by several wide ones).
template <class Scalar, int count>
struct alignas(sizeof(Scalar) * count < kWideLoad ? sizeof(Scalar) * count : kWideLoad) Pack {
    Scalar values[count];
};

// For what is read once: it takes no place in the caches from what is read again.
template <class Scalar, int count>
__device__ Pack<Scalar, count> load_once(const Pack<Scalar, count>* from) {
    Pack<Scalar, count> pack;
    if constexpr (sizeof pack == kWideLoad) {
        const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
        std::memcpy(&pack, &words, sizeof words);
    } else {
        static_assert(count == 1, "a pack is one wide load, or a scalar");
        pack.values[0] = __ldcs(from->values);
    }
    return pack;
}

// Whether rows at `stride` elements from one another all start at a multiple of `bytes`.
template <class Scalar>
bool rows_start_at(const Scalar* first, std::int64_t stride, std::int64_t bytes) {
    return reinterpret_cast<std::uintptr_t>(first) % bytes == 0 &&
           stride * static_cast<std::int64_t>(sizeof(Scalar)) % bytes == 0;
}

__device__ inline float warp_sum(float value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
    return value;
}

// kernel<<<blocks, threads, 0, stream>>>(arguments...), in words that every C++ compiler reads.
template <class... Expected, class... Arguments>
cudaError_t enqueue(void (*kernel)(Expected...), std::int64_t blocks, int threads, cudaStream_t stream,
                    Arguments... arguments) {
    constexpr std::int64_t kMostBlocks = 0x7fffffff;
    if (blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace invert_fast
