#include "product.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "clones.h"
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

constexpr std::int64_t kRowsAtOnce = 192;  // of x, which stay in cache while all panels pass

// Whether one of the sixteen scores of any row is above the limit of that row.
INVERT_FAST_CLONES
bool any_above(const float* scores, const float* limits, int rows) {
    int found = 0;
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < kTileColumns; ++c) found |= scores[r * kTileColumns + c] > limits[r];
    }
    return found != 0;
}

void best_two_of(const Product& op, std::int64_t begin, std::int64_t end, std::int64_t* columns, float* leads) {
    const Tile* tile = tiles();
    const std::int64_t panel_size = op.width * kTileColumns, panels = panels_of(op.columns);
    const std::int64_t count = end - begin, tiles_of_rows = (count + kTileRows - 1) / kTileRows;
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    float best[kRowsAtOnce], second[kRowsAtOnce];
    std::fill_n(best, count, kNone);
    std::fill_n(second, count, kNone);
    std::fill_n(columns + begin, count, 0);
    for (std::int64_t p = 0; p < panels; ++p) {
        const std::int64_t first = p * kTileColumns, there = std::min<std::int64_t>(kTileColumns, op.columns - first);
        const float* panel = op.packed + p * panel_size;
        float bias[kTileColumns], scores[kTileRows * kTileColumns];
        std::fill_n(bias, kTileColumns, kNone);  // what fills up the last panel is no column
        for (std::int64_t c = 0; c < there; ++c) bias[c] = op.bias ? op.bias[first + c] : 0.0f;
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = count * t / tiles_of_rows;
            const auto rows = static_cast<int>(count * (t + 1) / tiles_of_rows - row);
            if (p + 1 < panels) prefetch_part(panel + panel_size, panel_size * sizeof(float), t, tiles_of_rows);
            tile[rows - 1](op.x + (begin + row) * op.x_stride, op.x_stride, panel, bias, scores, kTileColumns, op.width);
            if (!any_above(scores, second + row, rows)) continue;
            for (int r = 0; r < rows; ++r) {
                float &highest = best[row + r], &next = second[row + r];
                for (int c = 0; c < there; ++c) {
                    const float score = scores[r * kTileColumns + c];
                    if (score > highest) {
                        next = highest;
                        highest = score;
                        columns[begin + row + r] = first + c;
                    } else if (score > next) {
                        next = score;
                    }
                }
            }
        }
    }
    for (std::int64_t r = 0; r < count; ++r) leads[begin + r] = best[r] - second[r];
}

}  // namespace

void best_two(const Product& op, std::int64_t* columns, float* leads, int threads) {
    if (op.rows == 0 || op.columns == 0) return;
    parallel_rows(op.rows, useful_threads(op.rows, op.width * op.columns, threads),
                  [&](std::int64_t begin, std::int64_t end) {
                      for (; begin < end; begin += kRowsAtOnce) {
                          best_two_of(op, begin, std::min(begin + kRowsAtOnce, end), columns, leads);
                      }
                  });
}

std::int64_t packed_size(std::int64_t width, std::int64_t columns) { return panels_of(columns) * width * kTileColumns; }

void pack_matrix(const float* matrix, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, float* packed) {
    std::memset(packed, 0, static_cast<std::size_t>(packed_size(width, columns)) * sizeof(float));
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
