#include "product.h"

#include <algorithm>
#include <cstring>

#include "clones.h"
#include "parallel.h"
#include "vector.h"

#if INVERT_FAST_X86_TARGETS
#include <immintrin.h>
#endif

namespace invert_fast {
namespace {

// A tile of rows × columns: its sums stay in twelve of the sixteen registers, so that two FMAs can start every cycle.
constexpr int kTileRows = 6, kTileColumns = 16;

// Loops over the rows of a tile are unrolled, or its sums would be kept in memory.
#if defined(__GNUC__) || defined(__clang__)
#define INVERT_FAST_UNROLL_ROWS _Pragma("GCC unroll 6")
#else
#define INVERT_FAST_UNROLL_ROWS
#endif

using Tile = void (*)(const float* x, std::int64_t x_stride, const float* panel, const float* bias, float* out,
                      std::int64_t out_stride, std::int64_t width);

#if INVERT_FAST_X86_TARGETS
template <int rows>
INVERT_FAST_AVX2 void tile_avx2(const float* x, std::int64_t x_stride, const float* panel, const float* bias,
                                float* out, std::int64_t out_stride, std::int64_t width) {
    __m256 low[rows], high[rows];
    const __m256 low_bias = bias ? _mm256_loadu_ps(bias) : _mm256_setzero_ps();
    const __m256 high_bias = bias ? _mm256_loadu_ps(bias + 8) : _mm256_setzero_ps();
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) low[r] = low_bias, high[r] = high_bias;
    for (std::int64_t k = 0; k < width; ++k, panel += kTileColumns) {
        const __m256 first = _mm256_load_ps(panel), second = _mm256_load_ps(panel + 8);
        INVERT_FAST_UNROLL_ROWS
        for (int r = 0; r < rows; ++r) {
            const __m256 value = _mm256_broadcast_ss(x + r * x_stride + k);
            low[r] = _mm256_fmadd_ps(value, first, low[r]);
            high[r] = _mm256_fmadd_ps(value, second, high[r]);
        }
    }
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        _mm256_storeu_ps(out + r * out_stride, low[r]);
        _mm256_storeu_ps(out + r * out_stride + 8, high[r]);
    }
}
constexpr Tile kAvx2[kTileRows] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
#endif

template <int rows>
void tile_baseline(const float* x, std::int64_t x_stride, const float* panel, const float* bias, float* out,
                   std::int64_t out_stride, std::int64_t width) {
    for (int r = 0; r < rows; ++r) {
        float total[kTileColumns] = {};
        if (bias) std::copy_n(bias, kTileColumns, total);
        for (std::int64_t k = 0; k < width; ++k) {
            for (int c = 0; c < kTileColumns; ++c) total[c] += x[r * x_stride + k] * panel[k * kTileColumns + c];
        }
        std::copy_n(total, kTileColumns, out + r * out_stride);
    }
}
constexpr Tile kBaseline[kTileRows] = {tile_baseline<1>, tile_baseline<2>, tile_baseline<3>,
                                       tile_baseline<4>, tile_baseline<5>, tile_baseline<6>};

const Tile* tiles() {
#if INVERT_FAST_X86_TARGETS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
    return kBaseline;
}

std::int64_t panels_of(std::int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }

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

bool product_is_fast() {
#if INVERT_FAST_X86_TARGETS
    return tiles() == kAvx2 && !__builtin_cpu_supports("avx512f");
#else
    return false;
#endif
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
    parallel_rows(panels, useful_threads(panels, op.rows * op.width, threads),
                  [&](std::int64_t begin, std::int64_t end) { multiply(op, begin, end); });
}

}  // namespace invert_fast
