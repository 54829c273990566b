#include "tile.h"

#include <algorithm>

#include "binding.h"
#include "clones.h"

#if INVERT_FAST_X86_TARGETS
#include <immintrin.h>
#endif

namespace invert_fast {
namespace {

// Loops over the rows of a tile are unrolled, or its sums would be kept in memory.
#if defined(__GNUC__) || defined(__clang__)
#define INVERT_FAST_UNROLL_ROWS _Pragma("GCC unroll 6")
#else
#define INVERT_FAST_UNROLL_ROWS
#endif

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

}  // namespace

const Tile* tiles() {
#if INVERT_FAST_X86_TARGETS
    if (isa_in_use != Isa::baseline) return kAvx2;
#endif
    return kBaseline;
}

namespace {

const Binding binding{[](py::module_& m) {
    m.def("tiles_are_widest", [] { return isa_in_use == Isa::avx2; },
          "Whether product, best_two and draft_attention use the widest vectors of isa(): elsewhere a BLAS is the "
          "faster.");
}};

}  // namespace

}  // namespace invert_fast
