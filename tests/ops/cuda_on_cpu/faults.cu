// A sound kernel, and the same with one fault each: prints what is noticed of it in both orders.
#include <cuda_pipeline.h>

#include <cstdio>
#include <exception>

namespace {

constexpr int kThreads = 64;

enum Fault {
    none, no_first_barrier, no_second_barrier, barrier_for_half, no_wait, copy_too_early, shuffle_of_half,
    shuffles_that_differ, misaligned_copy, faults
};
const char* const kNames[] = {
    "sound", "no first barrier", "no second barrier", "a barrier for half of the block", "no wait for a copy",
    "a copy into what is still read", "a shuffle of half a warp", "shuffles that differ", "a misaligned copy"};

// out[i] = in[(kThreads - 1 - i) ^ 1] + more[i], through shared memory, a shuffle, and shared memory again.
__global__ void pass_on(Fault fault, const int* in, const int* more, int* out) {
    __shared__ int box[kThreads + 1];
    const int i = static_cast<int>(threadIdx.x);
    __pipeline_memcpy_async(box + i, reinterpret_cast<const char*>(in + i) + (fault == misaligned_copy), sizeof *in);
    __pipeline_commit();
    if (fault != no_wait) __pipeline_wait_prior(0);
    if (fault != no_first_barrier && (fault != barrier_for_half || i < kThreads / 2)) __syncthreads();
    int value = box[kThreads - 1 - i];
    if (fault != shuffle_of_half || i % 32 < 16) {
        value = __shfl_xor_sync(0xffffffffu, value, fault == shuffles_that_differ && i == 5 ? 2 : 1);
    }
    if (fault != no_second_barrier && fault != copy_too_early) __syncthreads();
    __pipeline_memcpy_async(box + i, more + i, sizeof *more);
    if (fault == copy_too_early) __syncthreads();
    __pipeline_commit();
    __pipeline_wait_prior(0);
    out[i] = value + box[i];
}

const char* noticed(Fault fault) {
    int in[kThreads + 1] = {}, more[kThreads], out[kThreads];
    for (int i = 0; i < kThreads; ++i) in[i] = 7 * i, more[i] = 1000 * i;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1), config.blockDim = dim3(kThreads);
    try {
        cudaLaunchKernelEx(&config, pass_on, fault, static_cast<const int*>(in), static_cast<const int*>(more), +out);
    } catch (const std::exception& error) {
        static char message[100];
        std::snprintf(message, sizeof message, "%s", error.what());
        return message;
    }
    for (int i = 0; i < kThreads; ++i) {
        if (out[i] != in[(kThreads - 1 - i) ^ 1] + more[i]) return "wrong";
    }
    return "right";
}

}  // namespace

int main() {
    for (int fault = none; fault < faults; ++fault) {
        std::printf("%s", kNames[fault]);
        for (const bool second : {false, true}) {
            cuda_on_cpu::order = {second, second};
            std::printf(": %s", noticed(static_cast<Fault>(fault)));
        }
        std::printf("\n");
    }
}
