// The innermost product: a few rows times a panel of sixteen columns, all sums in registers.
#pragma once
#include <cstdint>

namespace invert_fast {

// Twelve of the sixteen registers of AVX2 hold the sums of a tile, so that two FMAs can start every cycle.
constexpr int kTileRows = 6, kTileColumns = 16;

// out [rows, 16] = x [rows, width] times panel [width, 16] + bias [16] (null: none); strides of x and out in floats, panel
// 32-byte aligned.
using Tile = void (*)(const float* x, std::int64_t x_stride, const float* panel, const float* bias, float* out,
                      std::int64_t out_stride, std::int64_t width);

// For 1 to kTileRows rows, the one at [rows - 1].
const Tile* tiles();

inline std::int64_t panels_of(std::int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }

}  // namespace invert_fast
