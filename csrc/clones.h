// Function multiversioning: one build that uses the widest vectors of the machine it lands on.
#pragma once
#include <cstdlib>  // defines __GLIBC__: the clone is picked by an ifunc, which other C libraries do not resolve

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define INVERT_FAST_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#define INVERT_FAST_CLONE_NAMES "avx512f", "avx2,fma", "default"
#else
#define INVERT_FAST_CLONES
#define INVERT_FAST_CLONE_NAMES "default"
#endif

// The same by hand, for code that is written in vectors: each clone names the width of its own.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define INVERT_FAST_X86_TARGETS 1
#define INVERT_FAST_AVX2 __attribute__((target("avx2,fma")))
#define INVERT_FAST_AVX512 __attribute__((target("avx512f")))
#else
#define INVERT_FAST_X86_TARGETS 0
#endif

namespace invert_fast {

// The one of three clones that this machine runs.
template <class Function>
Function widest([[maybe_unused]] Function avx512, [[maybe_unused]] Function avx2, Function baseline) {
#if INVERT_FAST_X86_TARGETS
    if (__builtin_cpu_supports("avx512f")) return avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
#endif
    return baseline;
}

}  // namespace invert_fast

// What a clone calls must be inlined into it, or it runs the baseline instructions.
#if defined(__GNUC__) || defined(__clang__)
#define INVERT_FAST_INLINE inline __attribute__((always_inline))
#else
#define INVERT_FAST_INLINE inline
#endif
