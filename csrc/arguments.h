// The Python arguments of the ops that `_C` and `_cuda` have in common.
#pragma once
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "nearest.h"
#include "residuals.h"

namespace invert_fast {

inline void require_non_negative(const char* name, std::int64_t value) {
    if (value < 0) throw std::invalid_argument(std::string(name) + " must be >= 0, got " + std::to_string(value));
}

// Tensors arrive as `data_ptr()` integers: no torch header, hence no ABI to match. Shapes and strides are the caller's
// to check (`invert_fast.ops`).
inline Residuals pack_residuals(std::uintptr_t predictions, std::uintptr_t targets, std::uintptr_t out, std::int64_t B,
                                std::int64_t C, std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c,
                                std::int64_t target_stride_b, bool pred_is_bf16, bool target_is_bf16) {
    require_non_negative("B", B);
    require_non_negative("C", C);
    require_non_negative("D", D);
    return {reinterpret_cast<const void*>(predictions),
            reinterpret_cast<const void*>(targets),
            reinterpret_cast<float*>(out),
            B,
            C,
            D,
            pred_stride_b,
            pred_stride_c,
            target_stride_b,
            pred_is_bf16,
            target_is_bf16};
}

inline Nearest pack_nearest(std::uintptr_t queries, std::uintptr_t table, std::uintptr_t banned,
                            std::uintptr_t distances, std::uintptr_t ids, std::int64_t B, std::int64_t V,
                            std::int64_t D, std::int64_t count, std::int64_t query_stride, std::int64_t table_stride,
                            std::int64_t banned_stride, int metric, bool table_is_bf16) {
    constexpr int kMetrics = 4;
    require_non_negative("B", B);
    require_non_negative("V", V);
    require_non_negative("D", D);
    require_non_negative("count", count);
    if (V > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("V must fit in 32 bits");
    if (metric < 0 || metric >= kMetrics) {
        throw std::invalid_argument("metric must be 0 to 3, got " + std::to_string(metric));
    }
    return {reinterpret_cast<const float*>(queries),
            reinterpret_cast<const void*>(table),
            reinterpret_cast<const std::uint8_t*>(banned),
            reinterpret_cast<float*>(distances),
            reinterpret_cast<std::int64_t*>(ids),
            B,
            V,
            D,
            count,
            query_stride,
            table_stride,
            banned_stride,
            static_cast<Metric>(metric),
            table_is_bf16};
}

}  // namespace invert_fast
