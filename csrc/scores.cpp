// A few rows times a tall matrix that lies there as its columns do, and is read once from memory: the scores of all
// tokens of a large vocabulary. A general product of so few rows takes three to seven times as long.
#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "sums.h"

namespace invert_fast {
namespace {

// out [rows, columns] = x [rows, width] · tableᵀ + bias [columns] (or null); table [columns, width] at a stride, x padded
// and aligned.
struct Scores {
    Rows x;
    const float* table;
    const float* bias;
    float* out;
    std::int64_t rows, columns, width;
    std::int64_t table_stride, out_stride;
};

// Columns of the output, the first of which is `first`: rows of the table that are in cache.
struct Columns {
    Rows rows;
    std::int64_t first, count;
};

template <int floats, int queries, int rows>
INVERT_FAST_INLINE void score_block(const Scores& op, std::int64_t n, const Columns& tile, std::int64_t r) {
    float totals[queries][rows];
    sums<Products, floats>(op.x[n], op.x.stride, tile.rows[r], tile.rows.stride, op.x.width, totals);
    for (int q = 0; q < queries; ++q) {
        float* out = op.out + (n + q) * op.out_stride + tile.first + r;
        for (int c = 0; c < rows; ++c) out[c] = totals[q][c] + (op.bias ? op.bias[tile.first + r + c] : 0.0f);
    }
}

template <int floats, int queries>
INVERT_FAST_INLINE void score_tile(const Scores& op, std::int64_t n, const Columns& tile) {
    std::int64_t r = 0;
    for (; r + kBlockRows <= tile.count; r += kBlockRows) score_block<floats, queries, kBlockRows>(op, n, tile, r);
    for (; r < tile.count; ++r) score_block<floats, queries, 1>(op, n, tile, r);
}

// Columns [begin, end) of the output.
template <int floats>
INVERT_FAST_INLINE void score_columns(const Scores& op, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = op.x.width;
    const std::int64_t tile_rows = std::max<std::int64_t>(kBlockRows, kTileFloats / std::max<std::int64_t>(1, width));
    const bool in_place = op.width == width;
    const AlignedFloats copy(in_place ? 0 : tile_rows * width);
    for (std::int64_t first = begin; first < end; first += tile_rows) {
        const std::int64_t count = std::min(tile_rows, end - first);
        const float *start = op.table + first * op.table_stride, *next = start + count * op.table_stride;
        const std::int64_t next_bytes =
            std::min(tile_rows, end - first - count) * op.table_stride * std::int64_t{sizeof(float)};
        Columns tile{{start, op.table_stride, width}, first, count};
        if (!in_place) {
            copy_rows(copy.get(), width, start, op.table_stride, count, op.width);
            tile.rows = {copy.get(), width, width};
        }
        std::int64_t n = 0;
        const std::int64_t blocks = op.rows / kBlockQueries;
        for (; n + kBlockQueries <= op.rows; n += kBlockQueries) {
            prefetch_part(next, next_bytes, n / kBlockQueries, blocks);
            score_tile<floats, kBlockQueries>(op, n, tile);
        }
        if (blocks == 0) prefetch_part(next, next_bytes, 0, 1);
        for (; n < op.rows; ++n) score_tile<floats, 1>(op, n, tile);
    }
}

constexpr Clones<score_columns<4>, score_columns<8>, score_columns<16>> score_share;

// Every score is summed in the same order, whatever stands beside it and however many threads there are.
void scores(std::uintptr_t x_ptr, std::uintptr_t table, std::uintptr_t bias, std::uintptr_t out, std::int64_t rows,
            std::int64_t width, std::int64_t columns, std::int64_t x_stride, std::int64_t table_stride,
            std::int64_t out_stride, int threads) {
    require_non_negative("rows", rows);
    require_non_negative("width", width);
    require_non_negative("columns", columns);
    require_non_negative("threads", threads);
    if (rows == 0 || columns == 0) return;
    const std::int64_t row_floats = padded(width);
    const AlignedFloats x(rows * row_floats);
    copy_rows(x.get(), row_floats, reinterpret_cast<const float*>(x_ptr), x_stride, rows, width);
    const Scores op{{x.get(), row_floats, row_floats},
                    reinterpret_cast<const float*>(table),
                    reinterpret_cast<const float*>(bias),
                    reinterpret_cast<float*>(out),
                    rows,
                    columns,
                    width,
                    table_stride,
                    out_stride};
    constexpr std::int64_t kLoad = 8;  // rows' worth of time that a row of the table takes to come from memory
    parallel_rows(columns, useful_threads(columns, (rows + kLoad) * width, threads),
                  [&op](std::int64_t begin, std::int64_t end) { score_share(op, begin, end); });
}

const Binding binding{[](py::module_& m) {
    m.def("scores", &scores, "x_ptr"_a, "table_ptr"_a, "bias_ptr"_a, "out_ptr"_a, "rows"_a, "width"_a, "columns"_a,
          "x_stride"_a, "table_stride"_a, "out_stride"_a, "threads"_a = 0, Unlocked(),
          "x [rows, width] times the transpose of table [columns, width], plus bias [columns] (or 0), to out [rows, "
          "columns]; all fp32. For few rows.");
}};

}  // namespace
}  // namespace invert_fast
