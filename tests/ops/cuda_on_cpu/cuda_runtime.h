// CUDA's words for kernels, as C++: a block's threads are fibers that meet in block.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"
#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // blocks run one after another; what is thread_local here is shared memory

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { cuda_on_cpu::block().wait_for_block(); }

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask) {
    return cuda_on_cpu::block().exchange(mask, value, lane_mask);
}

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float value) { return bits_as<int>(value); }

template <class Value>
Value __ldcs(const Value* from) {
    return *from;
}

template <class... Expected, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Arguments... arguments) {
    if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024) {
        return cudaErrorInvalidConfiguration;
    }
    gridDim = config->gridDim, blockDim = config->blockDim;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        cuda_on_cpu::Block(blockDim.x, [&] { kernel(arguments...); }).run();
    }
    return cudaSuccess;
}
