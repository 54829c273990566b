// A matrix product whose right side was packed once: for the few rows of a pass over lanes or a chunk of a text, where
// a general product spends a third to a half of its time on rearranging the weights.
#pragma once
#include <cstdint>

namespace invert_fast {

// x [rows, width] and out [rows, columns] fp32 at a stride, their last dimensions contiguous; bias [columns] or null;
// packed: of a matrix [width, columns], as `pack_matrix` wrote it.
struct Product {
    const float* x;
    const float* packed;
    const float* bias;
    float* out;
    std::int64_t rows, width, columns;
    std::int64_t x_stride, out_stride;
};

// Floats that the packed form of a matrix [width, columns] takes.
std::int64_t packed_size(std::int64_t width, std::int64_t columns);

// matrix [width, columns] at any strides → packed, 64-byte aligned.
void pack_matrix(const float* matrix, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, float* packed);

// out = x · matrix + bias. Every element is summed in the order of the width, whatever stands beside it and however many
// threads (0: every core) there are.
void product(const Product& op, int threads);

}  // namespace invert_fast
