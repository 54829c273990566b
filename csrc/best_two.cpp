// The largest two elements of every row of a product, of which nothing is written down.
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "parallel.h"
#include "tile.h"
#include "vector.h"

namespace invert_fast {
namespace {

constexpr std::int64_t kRowsAtOnce = 192;  // of x, which stay in cache while all panels pass
constexpr std::int64_t kTurns = 4, kMostTurns = 64;  // panels take turns: columns c and c + 16 kTurns are of a class
constexpr std::int64_t kScored = 256, kListed = 64;    // of a list: columns scored in full, and those that stay
constexpr float kWithin = 40;  // what a column may lack in the sketch and still be the best: nats
constexpr float kNone = -std::numeric_limits<float>::infinity();

// x · matrix + bias: x [rows, width] at a stride, packed a matrix [width, columns] as product.cpp packs it, bias [columns]
// or null.
struct Scores {
    const float* x;
    const float* packed;
    const float* bias;
    std::int64_t rows, width, columns, x_stride;
};

// The same for a few columns at a time: matrix [columns, width].
struct Rows {
    const float* x;
    const float* matrix;
    const float* bias;
    std::int64_t width, x_stride;
};

// Calls seen(row, rows, panel, scores [rows, 16]) on every tile of the scores' rows begin to end, rows counted from
// begin; panel by panel. What fills up the last panel scores -inf.
template <class Seen>
void each_tile(const Scores& op, std::int64_t begin, std::int64_t end, const Seen& seen) {
    const auto [tile, most, pairs, halves] = tiles();
    const std::int64_t panel_size = op.width * kTileColumns, panels = panels_of(op.columns);
    const std::int64_t count = end - begin, tiles_of_rows = (count + most - 1) / most;
    std::int64_t p = 0;
    for (; pairs && (p + 2) * kTileColumns <= op.columns; p += 2) {
        const float *panel = op.packed + p * panel_size, *bias = op.bias ? op.bias + p * kTileColumns : nullptr;
        float scores[2][kMostTileRows * kTileColumns];
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = count * t / tiles_of_rows;
            const auto rows = static_cast<int>(count * (t + 1) / tiles_of_rows - row);
            if (p + 2 < panels) prefetch_part(panel + 2 * panel_size, panel_size * sizeof(float), t, tiles_of_rows);
            pairs[rows - 1](op.x + (begin + row) * op.x_stride, op.x_stride, panel, panel_size, bias, scores[0],
                            kTileColumns, kMostTileRows * kTileColumns, op.width);
            seen(row, rows, p, scores[0]);
            seen(row, rows, p + 1, scores[1]);
        }
    }
    for (; p < panels; ++p) {
        const std::int64_t first = p * kTileColumns, there = std::min<std::int64_t>(kTileColumns, op.columns - first);
        const float* panel = op.packed + p * panel_size;
        float bias[kTileColumns], scores[kMostTileRows * kTileColumns];
        std::fill_n(bias, kTileColumns, kNone);
        for (std::int64_t c = 0; c < there; ++c) bias[c] = op.bias ? op.bias[first + c] : 0.0f;
        for (std::int64_t t = 0; t < tiles_of_rows; ++t) {
            const std::int64_t row = count * t / tiles_of_rows;
            const auto rows = static_cast<int>(count * (t + 1) / tiles_of_rows - row);
            if (p + 1 < panels) prefetch_part(panel + panel_size, panel_size * sizeof(float), t, tiles_of_rows);
            tile[rows - 1](op.x + (begin + row) * op.x_stride, op.x_stride, panel, bias, scores, kTileColumns, op.width);
            seen(row, rows, p, scores);
        }
    }
}

// Calls work(begin, end) on blocks of a few rows each, on several threads.
template <class Work>
void in_blocks(const Scores& op, int threads, const Work& work) {
    if (op.rows == 0 || op.columns == 0) return;
    parallel_rows(op.rows, useful_threads(op.rows, op.width * op.columns, threads),
                  [&](std::int64_t begin, std::int64_t end) {
                      for (; begin < end; begin += kRowsAtOnce) work(begin, std::min(begin + kRowsAtOnce, end));
                  });
}

struct Two {
    float best = kNone, second = kNone;
    std::int64_t column = 0;

    INVERT_FAST_INLINE void add(float score, std::int64_t at) {
        if (score > best) {
            second = best;
            best = score;
            column = at;
        } else if (score > second) {
            second = score;
        }
    }
};

// Whether one of the sixteen scores of any row is above the limit of that row.
INVERT_FAST_INLINE bool any_above_body(const float* scores, const float* limits, int rows) {
    int found = 0;
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < kTileColumns; ++c) found |= scores[r * kTileColumns + c] > limits[r];
    }
    return found != 0;
}
constexpr Clones<any_above_body> any_above;

void best_two_of(const Scores& op, std::int64_t begin, std::int64_t end, std::int64_t* columns, float* leads) {
    Two found[kRowsAtOnce];
    float limits[kRowsAtOnce];  // the second best of each so far
    std::fill_n(limits, kRowsAtOnce, kNone);
    each_tile(op, begin, end, [&](std::int64_t row, int rows, std::int64_t panel, const float* scores) {
        if (!any_above(scores, limits + row, rows)) return;
        for (int r = 0; r < rows; ++r) {
            for (int c = 0; c < kTileColumns; ++c) {
                found[row + r].add(scores[r * kTileColumns + c], panel * kTileColumns + c);
            }
            limits[row + r] = found[row + r].second;
        }
    });
    for (std::int64_t r = 0; r < end - begin; ++r) {
        columns[begin + r] = found[r].column;
        leads[begin + r] = found[r].best - found[r].second;
    }
}

// Keeps the higher of each score and the best so far, and the panel it is from.
INVERT_FAST_INLINE void keep_higher_body(const float* __restrict scores, int count, std::int32_t panel,
                                         float* __restrict best, std::int32_t* __restrict panels) {
    for (int i = 0; i < count; ++i) {
        const bool higher = scores[i] > best[i];
        best[i] = higher ? scores[i] : best[i];
        panels[i] = higher ? panel : panels[i];
    }
}
constexpr Clones<keep_higher_body> keep_higher;

INVERT_FAST_INLINE float dot_body(const float* __restrict a, const float* __restrict b, std::int64_t width) {
    constexpr int kPartial = 32;
    float total[kPartial] = {}, sum = 0;
    const std::int64_t whole = width - width % kPartial;
    for (std::int64_t i = 0; i < whole; i += kPartial) {
        for (int k = 0; k < kPartial; ++k) total[k] += a[i + k] * b[i + k];
    }
    for (std::int64_t i = whole; i < width; ++i) sum += a[i] * b[i];
    for (int k = 0; k < kPartial; ++k) sum += total[k];
    return sum;
}
constexpr Clones<dot_body> dot;

// Calls found(row, scores in the sketch, panels: arrays of kCount, -1 for no panel) for every row begin to end, counted
// from begin: of each class of columns that which is largest in the sketch. Column: panel * 16 + i % 16.
template <std::int64_t kTurnsTaken, class Found>
void each_winners(const Scores& sketch, std::int64_t begin, std::int64_t end, const Found& found) {
    const std::int64_t size = (end - begin) * kTileColumns;
    std::vector<float> best(kTurnsTaken * size, kNone);
    std::vector<std::int32_t> panels(kTurnsTaken * size, -1);
    each_tile(sketch, begin, end, [&](std::int64_t row, int rows, std::int64_t panel, const float* scores) {
        const std::int64_t at = panel % kTurnsTaken * size + row * kTileColumns;
        keep_higher(scores, rows * kTileColumns, static_cast<std::int32_t>(panel), &best[at], &panels[at]);
    });
    constexpr std::int64_t kCount = kTurnsTaken * kTileColumns;
    for (std::int64_t r = 0; r < end - begin; ++r) {
        float scores[kCount];
        std::int32_t from[kCount];
        for (std::int64_t turn = 0; turn < kTurnsTaken; ++turn) {
            std::copy_n(&best[turn * size + r * kTileColumns], kTileColumns, scores + turn * kTileColumns);
            std::copy_n(&panels[turn * size + r * kTileColumns], kTileColumns, from + turn * kTileColumns);
        }
        found(r, scores, from);
    }
}

float in_full(const Rows& op, std::int64_t row, std::int64_t column) {
    return dot(op.x + row * op.x_stride, op.matrix + column * op.width, op.width) + op.bias[column];
}

void best_two_of(const Scores& sketch, const Rows& op, std::int64_t begin, std::int64_t end, std::int64_t* columns,
                 float* leads) {
    constexpr std::int64_t kCount = kTurns * kTileColumns;
    each_winners<kTurns>(sketch, begin, end, [&](std::int64_t r, const float* scores, const std::int32_t* panels) {
        Two roughly;
        for (std::int64_t i = 0; i < kCount; ++i) roughly.add(scores[i], 0);
        const float least = std::min(roughly.second, roughly.best - kWithin);
        std::int64_t chosen[kCount], count = 0;
        for (std::int64_t i = 0; i < kCount; ++i) {
            if (panels[i] >= 0 && scores[i] >= least) chosen[count++] = panels[i] * kTileColumns + i % kTileColumns;
        }
        std::sort(chosen, chosen + count);  // ties go to the lower
        Two found;
        for (std::int64_t i = 0; i < count; ++i) found.add(in_full(op, begin + r, chosen[i]), chosen[i]);
        columns[begin + r] = found.column;
        leads[begin + r] = found.best - found.second;
    });
}

// The best in the sketch of many more classes, the best of these in full first: column -1 and score -inf where there are
// fewer.
void list_of(const Scores& sketch, const Rows& op, std::int64_t begin, std::int64_t end, std::int64_t* columns,
             float* out) {
    constexpr std::int64_t kCount = kMostTurns * kTileColumns;
    using Scored = std::pair<float, std::int64_t>;  // of a negative score: the least is the best, then the lower column
    each_winners<kMostTurns>(sketch, begin, end, [&](std::int64_t r, const float* scores, const std::int32_t* panels) {
        Scored roughly[kCount];
        std::int64_t count = 0;
        for (std::int64_t i = 0; i < kCount; ++i) {
            if (panels[i] < 0) continue;
            roughly[count++] = {-scores[i], panels[i] * kTileColumns + i % kTileColumns};
        }
        if (count > kScored) std::nth_element(roughly, roughly + kScored, roughly + count);
        count = std::min(count, kScored);
        std::int64_t there = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const float score = in_full(op, begin + r, roughly[i].second);
            if (score > kNone) roughly[there++] = {-score, roughly[i].second};
        }
        std::partial_sort(roughly, roughly + std::min(there, kListed), roughly + there);
        for (std::int64_t i = 0; i < kListed; ++i) {
            columns[(begin + r) * kListed + i] = i < there ? roughly[i].second : -1;
            out[(begin + r) * kListed + i] = i < there ? -roughly[i].first : kNone;
        }
    });
}

// Rows, width and stride of a row's x.
using Size = std::array<std::int64_t, 3>;
using Pointers = std::array<std::uintptr_t, 3>;

Scores pack_scores(const Pointers& x_packed_bias, const Size& size, std::int64_t columns) {
    require_non_negative("rows", size[0]);
    require_non_negative("width", size[1]);
    require_non_negative("columns", columns);
    const auto [x, packed, bias] = x_packed_bias;
    return {reinterpret_cast<const float*>(x),
            reinterpret_cast<const float*>(packed),
            reinterpret_cast<const float*>(bias),
            size[0],
            size[1],
            columns,
            size[2]};
}

// Of each row the column of the largest element (ties: the lower), and by how much it leads the second largest. NaN is
// never the largest.
void best_two(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, std::uintptr_t ids, std::uintptr_t leads,
              const Size& size, std::int64_t columns, int threads) {
    const Scores op = pack_scores({x, packed, bias}, size, columns);
    require_non_negative("threads", threads);
    in_blocks(op, threads, [&](std::int64_t begin, std::int64_t end) {
        best_two_of(op, begin, end, reinterpret_cast<std::int64_t*>(ids), reinterpret_cast<float*>(leads));
    });
}

// Calls work(sketch, rows in full, begin, end) on blocks of rows; `sketch` is a narrower product of as many rows and
// columns.
template <class Work>
void by_sketch(const Pointers& sketch, const Size& sketch_size, const Pointers& rows, const Size& size,
               std::int64_t columns, int threads, const Work& work) {
    const Scores low = pack_scores(sketch, sketch_size, columns), full = pack_scores(rows, size, columns);
    if (low.rows != full.rows) throw std::invalid_argument("sketch and x differ in rows");
    require_non_negative("threads", threads);
    const Rows op{full.x, full.packed, full.bias, full.width, full.x_stride};  // not packed, this one
    in_blocks(low, threads, [&](std::int64_t begin, std::int64_t end) { work(low, op, begin, end); });
}

// The same among a few columns a row: of every 64th column that which is largest in `sketch`.
void best_two_by_sketch(const Pointers& sketch, const Size& sketch_size, const Pointers& rows, const Size& size,
                        std::uintptr_t ids, std::uintptr_t leads, std::int64_t columns, int threads) {
    by_sketch(sketch, sketch_size, rows, size, columns, threads,
              [&](const Scores& low, const Rows& op, std::int64_t begin, std::int64_t end) {
                  best_two_of(low, op, begin, end, reinterpret_cast<std::int64_t*>(ids), reinterpret_cast<float*>(leads));
              });
}

// Of the best of every 1024th column in `sketch` the best 256 there, and the best 64 of these in full: 64 places a row, best
// first.
void list_by_sketch(const Pointers& sketch, const Size& sketch_size, const Pointers& rows, const Size& size,
                    std::uintptr_t ids, std::uintptr_t scores, std::int64_t columns, int threads) {
    by_sketch(sketch, sketch_size, rows, size, columns, threads,
              [&](const Scores& low, const Rows& op, std::int64_t begin, std::int64_t end) {
                  list_of(low, op, begin, end, reinterpret_cast<std::int64_t*>(ids), reinterpret_cast<float*>(scores));
              });
}

const Binding binding{[](py::module_& m) {
    m.def("best_two", &best_two, "x_ptr"_a, "packed_ptr"_a, "bias_ptr"_a, "ids_ptr"_a, "leads_ptr"_a, "size"_a,
          "columns"_a, "threads"_a = 0, Unlocked(),
          "Of each row of the product x · packed + bias the column of the largest element (int64) and its lead over the "
          "second. size: rows, width and stride of x.");
    m.def("best_two_by_sketch", &best_two_by_sketch, "sketch"_a, "sketch_size"_a, "rows"_a, "size"_a, "ids_ptr"_a,
          "leads_ptr"_a, "columns"_a, "threads"_a = 0, Unlocked(),
          "The same among the best of every 64th column in a narrower product. sketch: pointers of x, packed and "
          "bias; rows: of x, the matrix [columns, width] and bias.");
    m.def("list_by_sketch", &list_by_sketch, "sketch"_a, "sketch_size"_a, "rows"_a, "size"_a, "ids_ptr"_a, "scores_ptr"_a,
          "columns"_a, "threads"_a = 0, Unlocked(),
          "Of each row the best 64, best first (int64, -1 for none), and their scores in full: 64 places a row, of the "
          "256 that are best in a narrower product among the best of every 1024th column there.");
    m.attr("LISTED") = kListed;
}};

}  // namespace
}  // namespace invert_fast
