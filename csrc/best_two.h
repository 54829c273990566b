// The largest two elements of every row of a product, of which nothing is written down.
#pragma once
#include <cstdint>

#include "product.h"

namespace invert_fast {

// Of each row of x times matrix + bias the column of the largest element (ties: the lower), and by how much it leads the
// second largest; op.out is not used. NaN is never the largest.
void best_two(const Product& op, std::int64_t* columns, float* leads, int threads);

// A product as it is for a few columns at a time: x [rows, width] at a stride, matrix [columns, width], bias [columns].
struct Rows {
    const float* x;
    const float* matrix;
    const float* bias;
    std::int64_t width, x_stride;
};

// The same among a few columns a row: of every 64th column that which is largest in `sketch`, a narrower product of as
// many rows and columns, as far as it comes near the largest of all there; and two in any case.
void best_two_by_sketch(const Product& sketch, const Rows& op, std::int64_t* columns, float* leads, int threads);

}  // namespace invert_fast
