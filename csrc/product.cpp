// A matrix product whose right side was packed once: for the few rows of a pass over lanes or a chunk of a text, where
// a general product spends a third to a half of its time on rearranging the weights.
#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "binding.h"
#include "parallel.h"
#include "tile.h"
#include "vector.h"

namespace invert_fast {
namespace {

constexpr std::int64_t kRowsAtOnce = 256;  // of x, which stay in cache while all panels pass

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

void multiply(const Product& op, std::int64_t begin, std::int64_t end) {
    const auto [tile, most, pairs] = tiles();
    const std::int64_t panel_size = op.width * kTileColumns, tiles_of_rows = (op.rows + most - 1) / most;
    std::int64_t p = begin;
    for (; pairs && p + 1 < end && (p + 2) * kTileColumns <= op.columns; p += 2) {
        const std::int64_t first = p * kTileColumns;
        const float *panel = op.packed + p * panel_size, *bias = op.bias ? op.bias + first : nullptr;
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = op.rows * t / tiles_of_rows;
            const auto rows = static_cast<int>(op.rows * (t + 1) / tiles_of_rows - row);
            if (p + 2 < end) prefetch_part(panel + 2 * panel_size, 2 * panel_size * sizeof(float), t, tiles_of_rows);
            pairs[rows - 1](op.x + row * op.x_stride, op.x_stride, panel, panel_size, bias,
                            op.out + row * op.out_stride + first, op.out_stride, kTileColumns, op.width);
        }
    }
    for (; p < end; ++p) {
        const std::int64_t first = p * kTileColumns, columns = std::min<std::int64_t>(kTileColumns, op.columns - first);
        const float* panel = op.packed + p * panel_size;
        float bias[kTileColumns] = {}, edge[kMostTileRows * kTileColumns];
        if (op.bias) std::copy_n(op.bias + first, columns, bias);
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {  // of as nearly as many rows each as can be
            const std::int64_t row = op.rows * t / tiles_of_rows;
            const auto rows = static_cast<int>(op.rows * (t + 1) / tiles_of_rows - row);
            if (p + 1 < end) prefetch_part(panel + panel_size, panel_size * sizeof(float), t, tiles_of_rows);
            float* out = op.out + row * op.out_stride + first;
            if (columns == kTileColumns) {
                tile[rows - 1](op.x + row * op.x_stride, op.x_stride, panel, bias, out, op.out_stride, op.width);
                continue;
            }
            tile[rows - 1](op.x + row * op.x_stride, op.x_stride, panel, bias, edge, kTileColumns, op.width);
            for (int r = 0; r < rows; ++r) std::copy_n(edge + r * kTileColumns, columns, out + r * op.out_stride);
        }
    }
}

std::int64_t packed_size(std::int64_t width, std::int64_t columns) { return panels_of(columns) * width * kTileColumns; }

// matrix [width, columns] at any strides → packed, 64-byte aligned.
void pack_matrix(std::uintptr_t matrix_ptr, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, std::uintptr_t packed_ptr) {
    require_non_negative("width", width);
    require_non_negative("columns", columns);
    const auto* matrix = reinterpret_cast<const float*>(matrix_ptr);
    auto* packed = reinterpret_cast<float*>(packed_ptr);
    std::fill_n(packed, packed_size(width, columns), 0.0f);  // no memset: an empty one has no address
    for (std::int64_t c = 0; c < columns; ++c) {
        float* to = packed + c / kTileColumns * width * kTileColumns + c % kTileColumns;
        for (std::int64_t k = 0; k < width; ++k) to[k * kTileColumns] = matrix[k * stride + c * column_stride];
    }
}

// out = x · matrix + bias. Every element is summed in the order of the width, whatever stands beside it and however many
// threads there are.
void product(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, std::uintptr_t out, std::int64_t rows,
             std::int64_t width, std::int64_t columns, std::int64_t x_stride, std::int64_t out_stride, int threads) {
    require_non_negative("rows", rows);
    require_non_negative("width", width);
    require_non_negative("columns", columns);
    require_non_negative("threads", threads);
    const Product op{reinterpret_cast<const float*>(x),
                     reinterpret_cast<const float*>(packed),
                     reinterpret_cast<const float*>(bias),
                     reinterpret_cast<float*>(out),
                     rows,
                     width,
                     columns,
                     x_stride,
                     out_stride};
    if (rows == 0 || columns == 0) return;
    const std::int64_t panels = panels_of(columns);
    constexpr std::int64_t kLoad = 8;  // rows' worth of time that a panel takes to come from memory
    parallel_rows(panels, useful_threads(panels, (rows + kLoad) * width, threads),
                  [&op](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t row = 0; row < op.rows; row += kRowsAtOnce) {
                          Product part = op;
                          part.x += row * op.x_stride;
                          part.out += row * op.out_stride;
                          part.rows = std::min(kRowsAtOnce, op.rows - row);
                          multiply(part, begin, end);
                      }
                  });
}

const Binding binding{[](py::module_& m) {
    m.def("packed_size", &packed_size, "width"_a, "columns"_a,
          "Floats that the packed form of a matrix [width, columns] takes.");
    m.def("pack_matrix", &pack_matrix, "matrix_ptr"_a, "stride"_a, "column_stride"_a, "width"_a, "columns"_a,
          "packed_ptr"_a, Unlocked(), "Pack a matrix [width, columns] fp32 for product; packed: 64-byte aligned.");
    m.def("product", &product, "x_ptr"_a, "packed_ptr"_a, "bias_ptr"_a, "out_ptr"_a, "rows"_a, "width"_a, "columns"_a,
          "x_stride"_a, "out_stride"_a, "threads"_a = 0, Unlocked(),
          "x [rows, width] times a packed matrix, plus bias [columns] (or 0), to out [rows, columns]; all fp32.");
}};

}  // namespace
}  // namespace invert_fast
