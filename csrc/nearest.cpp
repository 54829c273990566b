#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "aligned.h"
#include "arguments.h"
#include "best.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "scalar.h"
#include "sums.h"
#include "vector.h"

namespace invert_fast {
namespace {

constexpr float kSmallestLength = 1e-12f;  // a zero vector has no direction and must not divide by zero
// Where a lower bound on L1 pays: a query less costs it the passes over each row, and a kept row the exact sum.
constexpr std::int64_t kBoundedQueries = 8, kRowsPerBounded = 64;

// What a pair of elements adds to the sum, and the distance that the sum stands for, given a measure of each vector.
struct L1 {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_distance_by_fma(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float, float) { return total; }
};
// |q - e| = 2 max(q, e) - q - e: two instructions an element in place of three, but it cancels. A measure adds to the
// sum of its vector more than all roundings can come to, so this never exceeds L1 as it is computed; what passes is
// computed again.
struct L1Bound {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_larger(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float query, float row) { return 2 * total - query - row; }
};
struct L2 {
    template <class V>
    INVERT_FAST_INLINE static void add(V& total, const V& q, const V& e) {
        total.add_square(q, e);
    }
    INVERT_FAST_INLINE static float distance(float total, float, float) { return total; }
};
struct Dot : Products {
    INVERT_FAST_INLINE static float distance(float total, float, float) { return -total; }
};
struct Cosine : Dot {
    INVERT_FAST_INLINE static float distance(float total, float query_length, float row_length) {
        return 1 - total / (query_length * row_length);
    }
};

template <int floats>
INVERT_FAST_INLINE float length(const float* row, std::int64_t width) {
    float square[1][1];
    sums<Dot, floats>(row, 0, row, 0, width, square);
    return std::max(std::sqrt(square[0][0]), kSmallestLength);
}

// The sum of a row, and the share of its length in L1 that bounds the roundings of the bound and of the distance
// itself: with n additions one after another and |max(q, e)| <= |q| + |e|, (4 n + 9) 2^-24 (|q|_1 + |e|_1) covers them.
// NaN, which bounds nothing, where a sum might overflow.
template <int floats>
INVERT_FAST_INLINE float bound(const float* row, std::int64_t width) {
    constexpr float kRounding = 1.0f / (1 << 24), kLargest = 1e37f, kUnderflow = 1e-30f;
    Vector<floats> total, size, element;
    const Vector<floats> zero;
    for (std::int64_t i = 0; i < width; i += floats) {
        element.load(row + i);
        total.add(element);
        size.add_distance(element, zero);
    }
    const float l1 = sum(size), additions = static_cast<float>(width / floats + floats);
    if (!(l1 < kLargest)) return std::numeric_limits<float>::quiet_NaN();
    return sum(total) + l1 * 5 * (additions + 4) * kRounding + kUnderflow;
}

// What Term::distance needs to know of a vector.
template <class Term, int floats>
INVERT_FAST_INLINE float measure(const float* row, std::int64_t width) {
    if constexpr (std::is_same_v<Term, Cosine>) return length<floats>(row, width);
    if constexpr (std::is_same_v<Term, L1Bound>) return bound<floats>(row, width);
    return 1;
}

// The op with its queries padded, and the best rows that one thread has found for each of them.
struct Search {
    const Nearest& op;
    Rows queries;
    Best* best;
};

template <class Term, int floats, int queries, int rows>
INVERT_FAST_INLINE void compare(const Search& search, std::int64_t b, const float* row, std::int64_t row_stride,
                                const float* query_measures, const float* row_measures, std::int64_t id) {
    float totals[queries][rows];
    sums<Term, floats>(search.queries[b], search.queries.stride, row, row_stride, search.queries.width, totals);
    for (int n = 0; n < queries; ++n) {
        Best& best = search.best[b + n];
        for (int r = 0; r < rows; ++r) {
            float distance = Term::distance(totals[n][r], query_measures[b + n], row_measures[r]);
            if constexpr (std::is_same_v<Term, L1Bound>) {
                if (best.rules_out(distance)) continue;
                float exact[1][1];
                sums<L1, floats>(search.queries[b + n], 0, row + r * row_stride, 0, search.queries.width, exact);
                distance = exact[0][0];
            }
            if (!best.wants(distance)) continue;
            if (search.op.banned && search.op.banned[(b + n) * search.op.banned_stride + id + r]) continue;
            best.add(distance, static_cast<std::uint32_t>(id + r));
        }
    }
}

// Rows of the table that every query passes over while they are in cache, the first of which is row `first`.
struct Tile {
    Rows rows;
    const float* measures;
    std::int64_t first, count;
};

template <class Term, int floats, int queries>
INVERT_FAST_INLINE void compare_tile(const Search& search, std::int64_t b, const float* query_measures,
                                     const Tile& tile) {
    std::int64_t r = 0;
    for (; r + kBlockRows <= tile.count; r += kBlockRows) {
        compare<Term, floats, queries, kBlockRows>(search, b, tile.rows[r], tile.rows.stride, query_measures,
                                                   tile.measures + r, tile.first + r);
    }
    for (; r < tile.count; ++r) {
        compare<Term, floats, queries, 1>(search, b, tile.rows[r], tile.rows.stride, query_measures, tile.measures + r,
                                          tile.first + r);
    }
}

// Rows [begin, end) of the table against every query.
template <class Term, int floats>
INVERT_FAST_INLINE void search_rows(const Search& search, std::int64_t begin, std::int64_t end) {
    const Nearest& op = search.op;
    const std::int64_t width = search.queries.width;
    const std::int64_t tile_rows = std::max<std::int64_t>(kBlockRows, kTileFloats / std::max<std::int64_t>(1, width));
    const std::int64_t row_bytes = op.table_stride * (op.table_is_bf16 ? sizeof(bf16) : sizeof(float));
    const bool in_place = !op.table_is_bf16 && op.width == width;
    const AlignedFloats copy(in_place ? 0 : tile_rows * width);
    std::vector<float> query_measures(static_cast<std::size_t>(op.batch)), measures(static_cast<std::size_t>(tile_rows));
    for (std::int64_t b = 0; b < op.batch; ++b) query_measures[b] = measure<Term, floats>(search.queries[b], width);
    for (std::int64_t first = begin; first < end; first += tile_rows) {
        const std::int64_t count = std::min(tile_rows, end - first), start = first * op.table_stride;
        // Asked for while this tile is searched: a row is shorter than what the processor notices as a stream.
        const char* next = static_cast<const char*>(op.table) + (first + count) * row_bytes;
        const std::int64_t next_bytes = std::min(tile_rows, end - first - count) * row_bytes;
        Tile tile{{copy.get(), width, width}, measures.data(), first, count};
        if (in_place) {
            tile.rows = {static_cast<const float*>(op.table) + start, op.table_stride, width};
        } else if (op.table_is_bf16) {
            copy_rows(copy.get(), width, static_cast<const bf16*>(op.table) + start, op.table_stride, count, op.width);
        } else {
            copy_rows(copy.get(), width, static_cast<const float*>(op.table) + start, op.table_stride, count, op.width);
        }
        for (std::int64_t r = 0; r < count; ++r) measures[r] = measure<Term, floats>(tile.rows[r], width);
        std::int64_t b = 0;
        for (; b + kBlockQueries <= op.batch; b += kBlockQueries) {
            prefetch_part(next, next_bytes, b / kBlockQueries, op.batch / kBlockQueries);
            compare_tile<Term, floats, kBlockQueries>(search, b, query_measures.data(), tile);
        }
        for (; b < op.batch; ++b) compare_tile<Term, floats, 1>(search, b, query_measures.data(), tile);
    }
}

template <int floats>
INVERT_FAST_INLINE void search_by_metric(const Search& search, std::int64_t begin, std::int64_t end) {
    switch (search.op.metric) {
        case Metric::l1:
            if (search.op.batch >= kBoundedQueries && search.op.rows / kRowsPerBounded >= search.op.count) {
                return search_rows<L1Bound, floats>(search, begin, end);
            }
            return search_rows<L1, floats>(search, begin, end);
        case Metric::l2: return search_rows<L2, floats>(search, begin, end);
        case Metric::cosine: return search_rows<Cosine, floats>(search, begin, end);
        case Metric::dot: return search_rows<Dot, floats>(search, begin, end);
    }
}

constexpr Clones<search_by_metric<4>, search_by_metric<8>, search_by_metric<16>> search_share;

void write(const Nearest& op, std::int64_t b, const std::vector<Ranked>& nearest) {
    const auto kept = static_cast<std::int64_t>(nearest.size());
    for (std::int64_t c = 0; c < op.count; ++c) {
        op.distances[b * op.count + c] = c < kept ? distance_of(nearest[c]) : std::numeric_limits<float>::infinity();
        op.ids[b * op.count + c] = c < kept ? id_of(nearest[c]) : -1;
    }
}

// A distance is always summed in the same order, so neither `threads` nor the other queries change the result.
void nearest_tokens(std::uintptr_t queries_ptr, std::uintptr_t table, std::uintptr_t banned, std::uintptr_t distances,
                    std::uintptr_t ids, std::int64_t B, std::int64_t V, std::int64_t D, std::int64_t count,
                    std::int64_t query_stride, std::int64_t table_stride, std::int64_t banned_stride, int metric,
                    bool table_is_bf16, int threads) {
    const Nearest op = pack_nearest(queries_ptr, table, banned, distances, ids, B, V, D, count, query_stride,
                                    table_stride, banned_stride, metric, table_is_bf16);
    require_non_negative("threads", threads);
    if (op.batch == 0 || op.count == 0) return;
    const std::int64_t width = padded(op.width);
    const AlignedFloats queries(op.batch * width);
    copy_rows(queries.get(), width, op.queries, op.query_stride, op.batch, op.width);

    const std::int64_t shares = useful_threads(op.rows, width * op.batch, threads);
    const std::vector<Best> none(static_cast<std::size_t>(op.batch), Best(static_cast<std::size_t>(op.count)));
    std::vector<std::vector<Best>> found(static_cast<std::size_t>(shares), none);
    parallel_rows(shares, shares, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t share = from; share < to; ++share) {
            const Search search{op, {queries.get(), width, width}, found[share].data()};
            search_share(search, op.rows * share / shares, op.rows * (share + 1) / shares);
        }
    });
    parallel_rows(op.batch, std::min(shares, op.batch), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t b = from; b < to; ++b) {
            for (std::int64_t share = 1; share < shares; ++share) found[0][b].add(found[share][b]);
            write(op, b, found[0][b].sorted());
        }
    });
}

const Binding binding{[](py::module_& m) {
    m.def("nearest_tokens", &nearest_tokens, "queries_ptr"_a, "table_ptr"_a, "banned_ptr"_a, "distances_ptr"_a,
          "ids_ptr"_a, "B"_a, "V"_a, "D"_a, "count"_a, "query_stride"_a, "table_stride"_a, "banned_stride"_a,
          "metric"_a, "table_is_bf16"_a, "threads"_a = 0, Unlocked(),
          "The count rows of table [V, D] (fp32 or bf16) nearest to each of queries [B, D] (fp32), ties to the lower "
          "id; banned [B, V] bytes or 0. metric: 0 l1, 1 l2, 2 cosine, 3 dot. Writes distances (fp32) and ids (int64) "
          "[B, count], which end in +inf and -1 where fewer rows are left.");
}};

}  // namespace
}  // namespace invert_fast
