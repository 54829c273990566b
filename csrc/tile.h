// The innermost product: a few rows times a panel of sixteen columns, all sums in registers.
#pragma once
#include <cstdint>

#include "scalar.h"

namespace invert_fast {

// So many sums that two FMAs can start every cycle, in registers: of six rows, two a row, with AVX2, and of eight rows with
// AVX-512. Twelve rows would fit as well, but rows at a stride of 4 KiB then push each other out of the cache.
constexpr int kMostTileRows = 8, kTileColumns = 16;

// out [rows, 16] = x [rows, width] times panel [width, 16] + bias [16] (null: none); strides of x and out in floats, panel
// 32-byte aligned. Every element is summed in the order of the width, whatever stands beside it.
using Tile = void (*)(const float* x, std::int64_t x_stride, const float* panel, const float* bias, float* out,
                      std::int64_t out_stride, std::int64_t width);

// The same for two panels, the second `panel_size` floats behind the first, its out [rows, 16] `other` floats behind that
// of the first; bias [32]. A number of x that is loaded once serves two sums then: with AVX-512 loads are what bounds a
// tile of one panel.
using PairTile = void (*)(const float* x, std::int64_t x_stride, const float* panel, std::int64_t panel_size,
                          const float* bias, float* out, std::int64_t out_stride, std::int64_t other,
                          std::int64_t width);

// The same for two panels of bf16 numbers, out [rows, 32]; to the same sums as of the fp32 ones they stand for. Read as they
// come from memory: of so few rows that is what takes the time.
using HalfPairTile = void (*)(const float* x, std::int64_t x_stride, const bf16* panel, std::int64_t panel_size,
                              const float* bias, float* out, std::int64_t out_stride, std::int64_t width);

// These for r of 1 to `rows` rows at of[r - 1] and pairs[r - 1]; pairs is null where one panel at a time is as fast,
// halves where there is none.
struct Tiles {
    const Tile* of;
    int rows;
    const PairTile* pairs;
    const HalfPairTile* halves;
};

Tiles tiles();

inline std::int64_t panels_of(std::int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }

}  // namespace invert_fast
