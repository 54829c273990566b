// A matrix product whose right side was packed once: for the few rows of a pass over lanes or a chunk of a text, where
// a general product spends a third to a half of its time on rearranging the weights. Of one to eight rows the time is
// that of reading the weights from memory: those that all are bf16 numbers are kept in half as many bytes, and come to
// the same sums.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "aligned.h"
#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "scalar.h"
#include "tile.h"
#include "vector.h"

namespace invert_fast {
namespace {

constexpr std::int64_t kRowsAtOnce = 256;  // of x, which stay in cache while all panels pass
constexpr std::int64_t kTilesAsTheyCome = 2;  // of more tiles of rows, bf16 numbers are widened once for all

// x [rows, width] and out [rows, columns] fp32 at a stride, their last dimensions contiguous; bias [columns] or null;
// packed: of a matrix [width, columns], as `pack_matrix` wrote it, fp32 or bf16.
struct Product {
    const float* x;
    const void* packed;
    const float* bias;
    float* out;
    std::int64_t rows, width, columns;
    std::int64_t x_stride, out_stride;
    bool packed_is_bf16;
};

INVERT_FAST_INLINE void widen_body(const bf16* __restrict from, float* __restrict to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}
constexpr Clones<widen_body> widen_all;

// The panels of a packed matrix, as tiles take them: where they lie, or two at a time, widened into cache.
class Panels {
   public:
    explicit Panels(const Product& op)
        : op_(op), size_(op.width * kTileColumns), wide_(op.packed_is_bf16 ? kPair * size_ : 0) {}
    // Panels p and, where `count` is two, p + 1.
    const float* operator()(std::int64_t p, std::int64_t count) const {
        if (!op_.packed_is_bf16) return static_cast<const float*>(op_.packed) + p * size_;
        widen_all(static_cast<const bf16*>(op_.packed) + p * size_, wide_.get(), count * size_);
        return wide_.get();
    }
    // Panels from p on are needed soon: a part of them.
    void prefetch(std::int64_t p, std::int64_t count, std::int64_t part, std::int64_t parts) const {
        const auto bytes = static_cast<std::int64_t>(op_.packed_is_bf16 ? sizeof(bf16) : sizeof(float)) * size_;
        prefetch_part(static_cast<const char*>(op_.packed) + p * bytes, count * bytes, part, parts);
    }

   private:
    static constexpr std::int64_t kPair = 2;
    const Product& op_;
    std::int64_t size_;
    AlignedFloats wide_;
};

void multiply(const Product& op, std::int64_t begin, std::int64_t end) {
    const Panels panels(op);
    const auto [tile, most, pairs, halves] = tiles();
    const std::int64_t panel_size = op.width * kTileColumns, tiles_of_rows = (op.rows + most - 1) / most;
    std::int64_t p = begin;
    const bool as_they_come = halves && op.packed_is_bf16 && tiles_of_rows <= kTilesAsTheyCome;
    for (; as_they_come && p + 1 < end && (p + 2) * kTileColumns <= op.columns; p += 2) {
        const std::int64_t first = p * kTileColumns;
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = op.rows * t / tiles_of_rows;
            const auto rows = static_cast<int>(op.rows * (t + 1) / tiles_of_rows - row);
            halves[rows - 1](op.x + row * op.x_stride, op.x_stride, static_cast<const bf16*>(op.packed) + p * panel_size,
                             panel_size, op.bias ? op.bias + first : nullptr, op.out + row * op.out_stride + first,
                             op.out_stride, op.width);
        }
    }
    for (; pairs && p + 1 < end && (p + 2) * kTileColumns <= op.columns; p += 2) {
        const std::int64_t first = p * kTileColumns;
        const float *panel = panels(p, 2), *bias = op.bias ? op.bias + first : nullptr;
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = op.rows * t / tiles_of_rows;
            const auto rows = static_cast<int>(op.rows * (t + 1) / tiles_of_rows - row);
            if (p + 2 < end) panels.prefetch(p + 2, std::min<std::int64_t>(2, end - p - 2), t, tiles_of_rows);
            pairs[rows - 1](op.x + row * op.x_stride, op.x_stride, panel, panel_size, bias,
                            op.out + row * op.out_stride + first, op.out_stride, kTileColumns, op.width);
        }
    }
    for (; p < end; ++p) {
        const std::int64_t first = p * kTileColumns, columns = std::min<std::int64_t>(kTileColumns, op.columns - first);
        const float* panel = panels(p, 1);
        float bias[kTileColumns] = {}, edge[kMostTileRows * kTileColumns];
        if (op.bias) std::copy_n(op.bias + first, columns, bias);
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {  // of as nearly as many rows each as can be
            const std::int64_t row = op.rows * t / tiles_of_rows;
            const auto rows = static_cast<int>(op.rows * (t + 1) / tiles_of_rows - row);
            if (p + 1 < end) panels.prefetch(p + 1, 1, t, tiles_of_rows);
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

float narrowed(float value, float) { return value; }

bf16 narrowed(float value, bf16) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<bf16>(bits >> 16);
}

// matrix [width, columns] at any strides → packed, 64-byte aligned. False, and no more is written, once a number would
// be another.
template <class Weight>
bool pack(const float* matrix, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
          std::int64_t columns, Weight* packed) {
    std::fill_n(packed, packed_size(width, columns), Weight{});  // no memset: an empty one has no address
    for (std::int64_t c = 0; c < columns; ++c) {
        Weight* to = packed + c / kTileColumns * width * kTileColumns + c % kTileColumns;
        std::uint32_t lost = 0;
        for (std::int64_t k = 0; k < width; ++k) {
            const float value = matrix[k * stride + c * column_stride];
            to[k * kTileColumns] = narrowed(value, Weight{});
            std::uint32_t bits, kept;
            const float wide = widen(to[k * kTileColumns]);
            std::memcpy(&bits, &value, sizeof bits);
            std::memcpy(&kept, &wide, sizeof kept);
            lost |= bits ^ kept;
        }
        if (lost) return false;
    }
    return true;
}

bool pack_matrix(std::uintptr_t matrix_ptr, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, std::uintptr_t packed_ptr, bool packed_is_bf16) {
    require_non_negative("width", width);
    require_non_negative("columns", columns);
    const auto* matrix = reinterpret_cast<const float*>(matrix_ptr);
    return packed_is_bf16
               ? pack(matrix, stride, column_stride, width, columns, reinterpret_cast<bf16*>(packed_ptr))
               : pack(matrix, stride, column_stride, width, columns, reinterpret_cast<float*>(packed_ptr));
}

// out = x · matrix + bias. Every element is summed in the order of the width, whatever stands beside it and however many
// threads there are.
void product(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, std::uintptr_t out, std::int64_t rows,
             std::int64_t width, std::int64_t columns, std::int64_t x_stride, std::int64_t out_stride,
             bool packed_is_bf16, int threads) {
    require_non_negative("rows", rows);
    require_non_negative("width", width);
    require_non_negative("columns", columns);
    require_non_negative("threads", threads);
    const Product op{reinterpret_cast<const float*>(x),
                     reinterpret_cast<const void*>(packed),
                     reinterpret_cast<const float*>(bias),
                     reinterpret_cast<float*>(out),
                     rows,
                     width,
                     columns,
                     x_stride,
                     out_stride,
                     packed_is_bf16};
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
          "Numbers that the packed form of a matrix [width, columns] takes.");
    m.def("pack_matrix", &pack_matrix, "matrix_ptr"_a, "stride"_a, "column_stride"_a, "width"_a, "columns"_a,
          "packed_ptr"_a, "packed_is_bf16"_a = false, Unlocked(),
          "Pack a matrix [width, columns] fp32 for product; packed: 64-byte aligned, fp32 or bf16. False where a number "
          "is none of bf16: then it is of no use.");
    m.def("product", &product, "x_ptr"_a, "packed_ptr"_a, "bias_ptr"_a, "out_ptr"_a, "rows"_a, "width"_a, "columns"_a,
          "x_stride"_a, "out_stride"_a, "packed_is_bf16"_a = false, "threads"_a = 0, Unlocked(),
          "x [rows, width] times a packed matrix, plus bias [columns] (or 0), to out [rows, columns]; fp32, the packed "
          "matrix fp32 or bf16.");
}};

}  // namespace
}  // namespace invert_fast
