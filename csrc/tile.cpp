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
#define INVERT_FAST_UNROLL_ROWS _Pragma("GCC unroll 8")
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
constexpr Tile kAvx2[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};

// Eight bf16 numbers as fp32 ones.
INVERT_FAST_AVX2 inline __m256 widened_avx2(const bf16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from))), 16));
}

template <int rows, int vectors>
INVERT_FAST_AVX2 inline void half_avx2(const float* x, std::int64_t x_stride, const bf16* const (&from)[vectors / 2],
                                       const float* bias, float* out, std::int64_t out_stride, std::int64_t width) {
    __m256 total[rows][vectors];
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        INVERT_FAST_UNROLL_ROWS
        for (int v = 0; v < vectors; ++v) total[r][v] = bias ? _mm256_loadu_ps(bias + 8 * v) : _mm256_setzero_ps();
    }
    for (std::int64_t k = 0; k < width; ++k) {
        __m256 weights[vectors];
        INVERT_FAST_UNROLL_ROWS
        for (int v = 0; v < vectors; ++v) weights[v] = widened_avx2(from[v / 2] + k * kTileColumns + v % 2 * 8);
        INVERT_FAST_UNROLL_ROWS
        for (int r = 0; r < rows; ++r) {
            const __m256 value = _mm256_broadcast_ss(x + r * x_stride + k);
            INVERT_FAST_UNROLL_ROWS
            for (int v = 0; v < vectors; ++v) total[r][v] = _mm256_fmadd_ps(value, weights[v], total[r][v]);
        }
    }
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        INVERT_FAST_UNROLL_ROWS
        for (int v = 0; v < vectors; ++v) _mm256_storeu_ps(out + r * out_stride + 8 * v, total[r][v]);
    }
}

template <int rows>
INVERT_FAST_AVX2 void half_pair_avx2(const float* x, std::int64_t x_stride, const bf16* panel,
                                     std::int64_t panel_size, const float* bias, float* out, std::int64_t out_stride,
                                     std::int64_t width) {
    constexpr int kBoth = 3;  // rows whose sums of both panels fit into registers
    if constexpr (rows <= kBoth) {
        half_avx2<rows, 4>(x, x_stride, {panel, panel + panel_size}, bias, out, out_stride, width);
    } else {
        for (int p = 0; p < 2; ++p) {
            half_avx2<rows, 2>(x, x_stride, {panel + p * panel_size}, bias ? bias + p * kTileColumns : nullptr,
                               out + p * kTileColumns, out_stride, width);
        }
    }
}
constexpr HalfPairTile kHalvesAvx2[] = {half_pair_avx2<1>, half_pair_avx2<2>, half_pair_avx2<3>,
                                        half_pair_avx2<4>, half_pair_avx2<5>, half_pair_avx2<6>};

template <int rows>
INVERT_FAST_AVX512 void tile_avx512(const float* x, std::int64_t x_stride, const float* panel, const float* bias,
                                    float* out, std::int64_t out_stride, std::int64_t width) {
    __m512 total[rows];
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) total[r] = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    for (std::int64_t k = 0; k < width; ++k, panel += kTileColumns) {
        const __m512 values = _mm512_loadu_ps(panel);
        INVERT_FAST_UNROLL_ROWS
        for (int r = 0; r < rows; ++r) {
            total[r] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * x_stride + k]), values, total[r]);
        }
    }
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) _mm512_storeu_ps(out + r * out_stride, total[r]);
}
template <int rows>
INVERT_FAST_AVX512 void pair_avx512(const float* x, std::int64_t x_stride, const float* panel, std::int64_t panel_size,
                                    const float* bias, float* out, std::int64_t out_stride, std::int64_t other,
                                    std::int64_t width) {
    __m512 left[rows], right[rows];
    const float* next = panel + panel_size;
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        left[r] = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        right[r] = bias ? _mm512_loadu_ps(bias + kTileColumns) : _mm512_setzero_ps();
    }
    for (std::int64_t k = 0; k < width; ++k, panel += kTileColumns, next += kTileColumns) {
        const __m512 first = _mm512_loadu_ps(panel), second = _mm512_loadu_ps(next);
        INVERT_FAST_UNROLL_ROWS
        for (int r = 0; r < rows; ++r) {
            const __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            left[r] = _mm512_fmadd_ps(value, first, left[r]);
            right[r] = _mm512_fmadd_ps(value, second, right[r]);
        }
    }
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        _mm512_storeu_ps(out + r * out_stride, left[r]);
        _mm512_storeu_ps(out + r * out_stride + other, right[r]);
    }
}
// Sixteen bf16 numbers as fp32 ones. With masks of all: GCC 12 warns of its own header in what has none.
INVERT_FAST_AVX512 inline __m512 widened_avx512(const bf16* from) {
    constexpr __mmask16 kAll = 0xffff;
    const __m256i halves = _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, halves), 16));
}

template <int rows>
INVERT_FAST_AVX512 void half_pair_avx512(const float* x, std::int64_t x_stride, const bf16* panel,
                                         std::int64_t panel_size, const float* bias, float* out,
                                         std::int64_t out_stride, std::int64_t width) {
    __m512 left[rows], right[rows];
    const bf16* next = panel + panel_size;
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        left[r] = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        right[r] = bias ? _mm512_loadu_ps(bias + kTileColumns) : _mm512_setzero_ps();
    }
    for (std::int64_t k = 0; k < width; ++k, panel += kTileColumns, next += kTileColumns) {
        const __m512 first = widened_avx512(panel), second = widened_avx512(next);
        INVERT_FAST_UNROLL_ROWS
        for (int r = 0; r < rows; ++r) {
            const __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            left[r] = _mm512_fmadd_ps(value, first, left[r]);
            right[r] = _mm512_fmadd_ps(value, second, right[r]);
        }
    }
    INVERT_FAST_UNROLL_ROWS
    for (int r = 0; r < rows; ++r) {
        _mm512_storeu_ps(out + r * out_stride, left[r]);
        _mm512_storeu_ps(out + r * out_stride + kTileColumns, right[r]);
    }
}
constexpr HalfPairTile kHalvesAvx512[] = {half_pair_avx512<1>, half_pair_avx512<2>, half_pair_avx512<3>,
                                          half_pair_avx512<4>, half_pair_avx512<5>, half_pair_avx512<6>,
                                          half_pair_avx512<7>, half_pair_avx512<8>};
constexpr PairTile kPairsAvx512[] = {pair_avx512<1>, pair_avx512<2>, pair_avx512<3>, pair_avx512<4>,
                                     pair_avx512<5>, pair_avx512<6>, pair_avx512<7>, pair_avx512<8>};
constexpr Tile kAvx512[] = {tile_avx512<1>, tile_avx512<2>, tile_avx512<3>, tile_avx512<4>,
                            tile_avx512<5>, tile_avx512<6>, tile_avx512<7>, tile_avx512<8>};
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
constexpr Tile kBaseline[] = {tile_baseline<1>, tile_baseline<2>, tile_baseline<3>, tile_baseline<4>};

template <std::size_t rows>
Tiles up_to(const Tile (&of)[rows], const PairTile* pairs = nullptr, const HalfPairTile* halves = nullptr) {
    static_assert(rows <= kMostTileRows);
    return {of, rows, pairs, halves};
}

}  // namespace

Tiles tiles() {
#if INVERT_FAST_X86_TARGETS
    if (isa_in_use == Isa::avx512) return up_to(kAvx512, kPairsAvx512, kHalvesAvx512);
    if (isa_in_use == Isa::avx2) return up_to(kAvx2, nullptr, kHalvesAvx2);
#endif
    return up_to(kBaseline);
}

namespace {

const Binding binding{[](py::module_& m) {
    m.def("tiles_are_wide", [] { return isa_in_use != Isa::baseline; },
          "Whether product, best_two and draft_attention have tiles for the vectors of isa(): elsewhere a BLAS is the "
          "faster.");
}};

}  // namespace

}  // namespace invert_fast
