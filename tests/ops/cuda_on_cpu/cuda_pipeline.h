// Copies to shared memory that are under way until they are waited for.
#pragma once
#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t size, std::size_t zeros = 0) {
    cuda_on_cpu::block().copy_later({to, from, size, zeros});
}
inline void __pipeline_commit() { cuda_on_cpu::block().commit_copies(); }
inline void __pipeline_wait_prior(std::size_t prior) { cuda_on_cpu::block().finish_copies(prior); }
