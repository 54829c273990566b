#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "best.h"
#include "clones.h"
#include "parallel.h"
#include "scalar.h"
#include "vector.h"

namespace invert_fast {
namespace {

constexpr float kSmallestLength = 1e-12f;  // a zero vector has no direction and must not divide by zero
// A block of queries × rows: its sums stay in registers, and each load serves several of them.
constexpr int kBlockQueries = 4, kBlockRows = 2;
constexpr std::int64_t kTileFloats = 6 << 10;  // of rows, which stay in cache while every query passes over them

// What a pair of elements adds to the sum, and the distance that the sum stands for.
struct L1 {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_distance_by_fma(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float, float) { return total; }
};
struct L2 {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_square(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float, float) { return total; }
};
struct Dot {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_product(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float, float) { return -total; }
};
struct Cosine : Dot {
    INVERT_FAST_INLINE static float distance(float total, float query_length, float row_length) {
        return 1 - total / (query_length * row_length);
    }
};

// Rows of floats at a stride; of a whole number of vectors, filled up with zeros, which add nothing to any sum.
struct Rows {
    const float* values;
    std::int64_t stride, width;
    INVERT_FAST_INLINE const float* operator[](std::int64_t row) const { return values + row * stride; }
};

std::int64_t padded(std::int64_t width) { return (width + kMostFloats - 1) / kMostFloats * kMostFloats; }

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
            for (int r = 0; r < rows; ++r) Term::add(total[n][r], query, row[r]);
        }
    }
    for (int n = 0; n < queries; ++n) {
        for (int r = 0; r < rows; ++r) totals[n][r] = sum(total[n][r]);
    }
}

template <int floats>
INVERT_FAST_INLINE float length(const float* row, std::int64_t width) {
    float square[1][1];
    sums<Dot, floats>(row, 0, row, 0, width, square);
    return std::max(std::sqrt(square[0][0]), kSmallestLength);
}

template <class Scalar>
INVERT_FAST_INLINE void copy_rows(float* to, std::int64_t to_stride, const Scalar* from, std::int64_t from_stride,
                                  std::int64_t rows, std::int64_t width) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < width; ++i) to[r * to_stride + i] = widen(from[r * from_stride + i]);
    }
}

// Zeros that start at a cache line, so that no load of a row spans two.
class AlignedFloats {
   public:
    explicit AlignedFloats(std::int64_t size) : storage_(static_cast<std::size_t>(size + kMostFloats)) {
        constexpr std::uintptr_t kLine = kMostFloats * sizeof(float);
        const auto start = reinterpret_cast<std::uintptr_t>(storage_.data());
        values_ = storage_.data() + (kLine - start % kLine) % kLine / sizeof(float);
    }
    AlignedFloats(const AlignedFloats&) = delete;
    AlignedFloats& operator=(const AlignedFloats&) = delete;
    float* get() const { return values_; }

   private:
    std::vector<float> storage_;
    float* values_;
};

// The op with its queries padded, and the best rows that one thread has found for each of them.
struct Search {
    const Nearest& op;
    Rows queries;
    const float* lengths;
    Best* best;
};

template <class Term, int floats, int queries, int rows>
INVERT_FAST_INLINE void compare(const Search& search, std::int64_t b, const float* row, std::int64_t row_stride,
                                const float* row_lengths, std::int64_t id) {
    float totals[queries][rows];
    sums<Term, floats>(search.queries[b], search.queries.stride, row, row_stride, search.queries.width, totals);
    for (int n = 0; n < queries; ++n) {
        Best& best = search.best[b + n];
        for (int r = 0; r < rows; ++r) {
            const float distance = Term::distance(totals[n][r], search.lengths[b + n], row_lengths[r]);
            if (!best.wants(distance)) continue;
            if (search.op.banned && search.op.banned[(b + n) * search.op.banned_stride + id + r]) continue;
            best.add(distance, static_cast<std::uint32_t>(id + r));
        }
    }
}

// `count` rows of the table, the first of which is `first`, against `queries` queries from b on.
template <class Term, int floats, int queries>
INVERT_FAST_INLINE void compare_tile(const Search& search, std::int64_t b, const Rows& tile, const float* row_lengths,
                                     std::int64_t first, std::int64_t count) {
    std::int64_t r = 0;
    for (; r + kBlockRows <= count; r += kBlockRows) {
        compare<Term, floats, queries, kBlockRows>(search, b, tile[r], tile.stride, row_lengths + r, first + r);
    }
    for (; r < count; ++r) {
        compare<Term, floats, queries, 1>(search, b, tile[r], tile.stride, row_lengths + r, first + r);
    }
}

// Rows [begin, end) of the table against every query.
template <class Term, int floats>
INVERT_FAST_INLINE void search_rows(const Search& search, std::int64_t begin, std::int64_t end) {
    const Nearest& op = search.op;
    const std::int64_t width = search.queries.width;
    const std::int64_t tile_rows = std::max<std::int64_t>(kBlockRows, kTileFloats / std::max<std::int64_t>(1, width));
    const bool in_place = !op.table_is_bf16 && op.width == width;
    const AlignedFloats copy(in_place ? 0 : tile_rows * width);
    std::vector<float> lengths(static_cast<std::size_t>(tile_rows), 1.0f);
    for (std::int64_t first = begin; first < end; first += tile_rows) {
        const std::int64_t count = std::min(tile_rows, end - first), start = first * op.table_stride;
        Rows tile{copy.get(), width, width};
        if (in_place) {
            tile = {static_cast<const float*>(op.table) + start, op.table_stride, width};
        } else if (op.table_is_bf16) {
            copy_rows(copy.get(), width, static_cast<const bf16*>(op.table) + start, op.table_stride, count, op.width);
        } else {
            copy_rows(copy.get(), width, static_cast<const float*>(op.table) + start, op.table_stride, count, op.width);
        }
        if (op.metric == Metric::cosine) {
            for (std::int64_t r = 0; r < count; ++r) lengths[r] = length<floats>(tile[r], width);
        }
        std::int64_t b = 0;
        for (; b + kBlockQueries <= op.batch; b += kBlockQueries) {
            compare_tile<Term, floats, kBlockQueries>(search, b, tile, lengths.data(), first, count);
        }
        for (; b < op.batch; ++b) compare_tile<Term, floats, 1>(search, b, tile, lengths.data(), first, count);
    }
}

template <int floats>
INVERT_FAST_INLINE void search_rows(const Search& search, std::int64_t begin, std::int64_t end) {
    switch (search.op.metric) {
        case Metric::l1: return search_rows<L1, floats>(search, begin, end);
        case Metric::l2: return search_rows<L2, floats>(search, begin, end);
        case Metric::cosine: return search_rows<Cosine, floats>(search, begin, end);
        case Metric::dot: return search_rows<Dot, floats>(search, begin, end);
    }
}

void search_baseline(const Search& search, std::int64_t begin, std::int64_t end) { search_rows<4>(search, begin, end); }
#if INVERT_FAST_X86_TARGETS
INVERT_FAST_AVX2 void search_avx2(const Search& search, std::int64_t begin, std::int64_t end) {
    search_rows<8>(search, begin, end);
}
INVERT_FAST_AVX512 void search_avx512(const Search& search, std::int64_t begin, std::int64_t end) {
    search_rows<16>(search, begin, end);
}
#else
constexpr auto search_avx2 = search_baseline, search_avx512 = search_baseline;
#endif

void write(const Nearest& op, std::int64_t b, const std::vector<Ranked>& nearest) {
    const auto kept = static_cast<std::int64_t>(nearest.size());
    for (std::int64_t c = 0; c < op.count; ++c) {
        op.distances[b * op.count + c] = c < kept ? distance_of(nearest[c]) : std::numeric_limits<float>::infinity();
        op.ids[b * op.count + c] = c < kept ? id_of(nearest[c]) : -1;
    }
}

}  // namespace

void nearest_tokens(const Nearest& op, int threads) {
    if (op.batch == 0 || op.count == 0) return;
    const std::int64_t width = padded(op.width);
    const AlignedFloats queries(op.batch * width);
    copy_rows(queries.get(), width, op.queries, op.query_stride, op.batch, op.width);
    std::vector<float> lengths;
    for (std::int64_t b = 0; b < op.batch; ++b) lengths.push_back(length<4>(queries.get() + b * width, width));

    const auto search_rows = widest(search_avx512, search_avx2, search_baseline);
    const std::int64_t shares = useful_threads(op.rows, width * op.batch, threads);
    const std::vector<Best> none(static_cast<std::size_t>(op.batch), Best(static_cast<std::size_t>(op.count)));
    std::vector<std::vector<Best>> found(static_cast<std::size_t>(shares), none);
    parallel_rows(shares, shares, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t share = from; share < to; ++share) {
            const Search search{op, {queries.get(), width, width}, lengths.data(), found[share].data()};
            search_rows(search, op.rows * share / shares, op.rows * (share + 1) / shares);
        }
    });
    parallel_rows(op.batch, std::min(shares, op.batch), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t b = from; b < to; ++b) {
            for (std::int64_t share = 1; share < shares; ++share) found[0][b].add(found[share][b]);
            write(op, b, found[0][b].sorted());
        }
    });
}

}  // namespace invert_fast
