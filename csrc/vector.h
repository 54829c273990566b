// One register of floats, its width named by the clone that uses it: 4 with SSE or NEON, 8 with AVX, 16 with AVX-512.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "clones.h"

namespace invert_fast {

constexpr int kMostFloats = 16;

// Clang takes no register wider than the baseline's in a function that is yet to be inlined into a clone.
#if INVERT_FAST_X86_TARGETS && !defined(__clang__)
#define INVERT_FAST_WIDE_ASM 1
#else
#define INVERT_FAST_WIDE_ASM 0
#endif

#if defined(__GNUC__) || defined(__clang__)
// Spelled out, as a vector_size that depends on a template parameter is not portable.
template <int floats>
struct VectorTypes;
#define INVERT_FAST_VECTOR_TYPES(floats)                                                 \
    template <>                                                                          \
    struct VectorTypes<floats> {                                                         \
        using Values = float __attribute__((vector_size(floats * sizeof(float))));       \
        using Bits = std::uint32_t __attribute__((vector_size(floats * sizeof(float)))); \
    };
INVERT_FAST_VECTOR_TYPES(4)
INVERT_FAST_VECTOR_TYPES(8)
INVERT_FAST_VECTOR_TYPES(16)
#undef INVERT_FAST_VECTOR_TYPES

template <int floats>
struct Vector {
    using Bits = typename VectorTypes<floats>::Bits;
    typename VectorTypes<floats>::Values values = {};

    INVERT_FAST_INLINE void load(const float* from) { std::memcpy(&values, from, sizeof values); }
    INVERT_FAST_INLINE void add_distance(const Vector& a, const Vector& b) {  // += |a - b|
        values += (typename VectorTypes<floats>::Values)((Bits)(a.values - b.values) & 0x7fffffffu);
    }
    // The same to the last bit. Where units that multiply stand beside those that add, as on AMD, a - 1 b leaves the
    // latter to the sum: a tenth faster between loads. The compiler must not know that it multiplies by one.
    INVERT_FAST_INLINE void add_distance_by_fma(const Vector& a, const Vector& b) {
#if INVERT_FAST_WIDE_ASM
        if constexpr (floats > 4) {
            values += (typename VectorTypes<floats>::Values)((Bits)(a.values - b.values * one()) & 0x7fffffffu);
            return;
        }
#endif
        add_distance(a, b);
    }
    // += max(a, b), by FMA for the same reason: with an addition it takes half as long again.
    INVERT_FAST_INLINE void add_larger(const Vector& a, const Vector& b) {
        const auto larger = a.values > b.values ? a.values : b.values;
#if INVERT_FAST_WIDE_ASM
        if constexpr (floats > 4) {
            values += larger * one();
            return;
        }
#endif
        values += larger;
    }
    INVERT_FAST_INLINE void add(const Vector& a) { values += a.values; }
    // From here on in a register: the compiler may not read it from memory again for every use.
    INVERT_FAST_INLINE void hold() {
#if INVERT_FAST_WIDE_ASM
        __asm__("" : "+x"(values));
#endif
    }
    INVERT_FAST_INLINE void add_square(const Vector& a, const Vector& b) {  // += (a - b)^2
        values += (a.values - b.values) * (a.values - b.values);
    }
    INVERT_FAST_INLINE void add_product(const Vector& a, const Vector& b) { values += a.values * b.values; }  // += a b

   private:
#if INVERT_FAST_WIDE_ASM
    static INVERT_FAST_INLINE typename VectorTypes<floats>::Values one() {
        auto ones = typename VectorTypes<floats>::Values{} + 1.0f;
        __asm__("" : "+x"(ones));
        return ones;
    }
#endif
};
#else  // no vector types: loops, which the compiler may vectorise
template <int floats>
struct Vector {
    float values[floats] = {};

    void load(const float* from) { std::memcpy(values, from, sizeof values); }
    void add_distance(const Vector& a, const Vector& b) {
        for (int i = 0; i < floats; ++i) values[i] += std::fabs(a.values[i] - b.values[i]);
    }
    void add_distance_by_fma(const Vector& a, const Vector& b) { add_distance(a, b); }
    void add_larger(const Vector& a, const Vector& b) {
        for (int i = 0; i < floats; ++i) values[i] += a.values[i] > b.values[i] ? a.values[i] : b.values[i];
    }
    void add(const Vector& a) {
        for (int i = 0; i < floats; ++i) values[i] += a.values[i];
    }
    void hold() {}
    void add_square(const Vector& a, const Vector& b) {
        for (int i = 0; i < floats; ++i) values[i] += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
    }
    void add_product(const Vector& a, const Vector& b) {
        for (int i = 0; i < floats; ++i) values[i] += a.values[i] * b.values[i];
    }
};
#endif

// Part `part` of `parts` of memory that is needed soon, asked for now.
INVERT_FAST_INLINE void prefetch_part(const void* from, std::int64_t bytes, std::int64_t part, std::int64_t parts) {
#if defined(__GNUC__) || defined(__clang__)
    constexpr std::int64_t kLine = 64;
    const std::int64_t lines = (bytes + kLine - 1) / kLine;
    for (std::int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line) {
        __builtin_prefetch(static_cast<const char*>(from) + line * kLine, 0, 2);
    }
#else
    (void)from, (void)bytes, (void)part, (void)parts;
#endif
}

// Summed in halves.
template <int floats>
INVERT_FAST_INLINE float sum(const Vector<floats>& vector) {
    if constexpr (floats > 4) {
        Vector<floats / 2> low, high;
        std::memcpy(&low.values, &vector.values, sizeof low.values);
        std::memcpy(&high.values, reinterpret_cast<const char*>(&vector.values) + sizeof low.values, sizeof high.values);
        low.add(high);
        return sum(low);
    } else {
        static_assert(floats == 4);
        return (vector.values[0] + vector.values[2]) + (vector.values[1] + vector.values[3]);
    }
}

}  // namespace invert_fast
