// The Python arguments of `residuals`, the same for `_C` and `_cuda`.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

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
            target_is_bf16,
            nullptr};
}

}  // namespace invert_fast
