// Sums over pairs of elements of a few vectors and a few rows of a table, all of them in registers.
#pragma once
#include <cstdint>

#include "scalar.h"
#include "vector.h"

namespace invert_fast {

// A block of vectors × rows: its sums stay in registers, and each load serves several of them.
constexpr int kBlockQueries = 4, kBlockRows = 2;
constexpr std::int64_t kTileFloats = 3 << 10;  // of rows, which stay in cache while every vector passes over them

// Rows of floats at a stride; of a whole number of vectors, filled up with zeros, which add nothing to any sum.
struct Rows {
    const float* values;
    std::int64_t stride, width;
    INVERT_FAST_INLINE const float* operator[](std::int64_t row) const { return values + row * stride; }
};

inline std::int64_t padded(std::int64_t width) { return (width + kMostFloats - 1) / kMostFloats * kMostFloats; }

template <class Scalar>
INVERT_FAST_INLINE void copy_rows(float* to, std::int64_t to_stride, const Scalar* from, std::int64_t from_stride,
                                  std::int64_t rows, std::int64_t width) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < width; ++i) to[r * to_stride + i] = widen(from[r * from_stride + i]);
    }
}

struct Products {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_product(q, e);
    }
};

// totals[n][r] = sum_i term(q[n][i], e[r][i])
template <class Term, int floats, int queries, int rows>
INVERT_FAST_INLINE void sums(const float* q, std::int64_t q_stride, const float* e, std::int64_t e_stride,
                             std::int64_t width, float (&totals)[queries][rows]) {
    Vector<floats> total[queries][rows];
    for (std::int64_t i = 0; i < width; i += floats) {
        Vector<floats> row[rows], query;
        for (int r = 0; r < rows; ++r) row[r].load(e + r * e_stride + i);
        for (int n = 0; n < queries; ++n) {
            query.load(q + n * q_stride + i);
            query.hold();
            for (int r = 0; r < rows; ++r) Term::add(total[n][r], query, row[r]);
        }
    }
    for (int n = 0; n < queries; ++n) {
        for (int r = 0; r < rows; ++r) totals[n][r] = sum(total[n][r]);
    }
}

}  // namespace invert_fast
