// Function multiversioning: one build that uses the widest vectors of the machine it lands on, or those it is told to.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define INVERT_FAST_X86_TARGETS 1
#define INVERT_FAST_AVX2 __attribute__((target("avx2,fma")))
#define INVERT_FAST_AVX512 __attribute__((target("avx512f")))
#else
#define INVERT_FAST_X86_TARGETS 0
#define INVERT_FAST_AVX2
#define INVERT_FAST_AVX512
#endif

// What a clone calls must be inlined into it, or it runs the baseline instructions. The second is for lambdas.
#if defined(__GNUC__) || defined(__clang__)
#define INVERT_FAST_INLINE inline __attribute__((always_inline))
#define INVERT_FAST_INLINED __attribute__((always_inline))
#else
#define INVERT_FAST_INLINE inline
#define INVERT_FAST_INLINED
#endif

namespace invert_fast {

// The instruction sets that ops are compiled for, from narrow to wide; a machine that has one has those before it.
enum class Isa { baseline, avx2, avx512 };

// That which all ops use. Set before the first of them runs, and never while one does.
inline Isa isa_in_use = Isa::baseline;

// A function in one clone an instruction set, called like the function: `constexpr Clones<body> name;`, or
// `Clones<body<4>, body<8>, body<16>>` where the body names the width of its vectors. Bodies are INVERT_FAST_INLINE.
template <auto baseline, auto avx2 = baseline, auto avx512 = avx2>
struct Clones;

template <class Result, class... Given, Result (*baseline)(Given...), Result (*avx2)(Given...),
          Result (*avx512)(Given...)>
struct Clones<baseline, avx2, avx512> {
    Result operator()(Given... given) const {
        if constexpr (INVERT_FAST_X86_TARGETS) {
            if (isa_in_use == Isa::avx512) return with_avx512(given...);
            if (isa_in_use == Isa::avx2) return with_avx2(given...);
        }
        return with_baseline(given...);
    }

   private:
    static Result with_baseline(Given... given) { return baseline(given...); }
    INVERT_FAST_AVX2 static Result with_avx2(Given... given) { return avx2(given...); }
    INVERT_FAST_AVX512 static Result with_avx512(Given... given) { return avx512(given...); }
};

}  // namespace invert_fast
