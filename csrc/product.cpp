#include "product.h"

#include <algorithm>

#include "parallel.h"
#include "tile.h"
#include "vector.h"

namespace invert_fast {
namespace {

void multiply(const Product& op, std::int64_t begin, std::int64_t end) {
    const Tile* tile = tiles();
    const std::int64_t panel_size = op.width * kTileColumns, tiles_of_rows = (op.rows + kTileRows - 1) / kTileRows;
    for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t first = p * kTileColumns, columns = std::min<std::int64_t>(kTileColumns, op.columns - first);
        const float* panel = op.packed + p * panel_size;
        float bias[kTileColumns] = {}, edge[kTileRows * kTileColumns];
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

}  // namespace

std::int64_t packed_size(std::int64_t width, std::int64_t columns) { return panels_of(columns) * width * kTileColumns; }

void pack_matrix(const float* matrix, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, float* packed) {
    std::fill_n(packed, packed_size(width, columns), 0.0f);  // no memset: an empty one has no address
    for (std::int64_t c = 0; c < columns; ++c) {
        float* to = packed + c / kTileColumns * width * kTileColumns + c % kTileColumns;
        for (std::int64_t k = 0; k < width; ++k) to[k * kTileColumns] = matrix[k * stride + c * column_stride];
    }
}

void product(const Product& op, int threads) {
    if (op.rows == 0 || op.columns == 0) return;
    const std::int64_t panels = panels_of(op.columns);
    constexpr std::int64_t kLoad = 8;  // rows' worth of time that a panel takes to come from memory
    parallel_rows(panels, useful_threads(panels, (op.rows + kLoad) * op.width, threads),
                  [&](std::int64_t begin, std::int64_t end) { multiply(op, begin, end); });
}

}  // namespace invert_fast
