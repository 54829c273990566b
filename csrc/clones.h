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

// What a clone calls must be inlined into it, or it runs the baseline instructions.
#if defined(__GNUC__) || defined(__clang__)
#define INVERT_FAST_INLINE inline __attribute__((always_inline))
#else
#define INVERT_FAST_INLINE inline
#endif
