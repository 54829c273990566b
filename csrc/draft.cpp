// Attention of a chunk of text after each lane's prefix: what verifying a draft runs once a layer.
#include <algorithm>
#include <array>
#include <cstdint>

#include "aligned.h"
#include "arguments.h"
#include "binding.h"
#include "clones.h"
#include "exponential.h"
#include "fan_out.h"
#include "parallel.h"
#include "tile.h"

namespace invert_fast {
namespace {

constexpr int kPartial = 16;  // sums and maxima in so many parts, which vectorise

// scores → e^{scale (score − highest)}; returns their sum, NaN where a score is not finite.
INVERT_FAST_INLINE float exponentials_body(float* __restrict scores, std::int64_t count, float scale) {
    float highest[kPartial], total[kPartial] = {}, checked[kPartial] = {};
    std::fill_n(highest, kPartial, scores[0]);
    const std::int64_t whole = count - count % kPartial;
    for (std::int64_t i = 0; i < whole; i += kPartial) {
        for (int k = 0; k < kPartial; ++k) {
            highest[k] = scores[i + k] > highest[k] ? scores[i + k] : highest[k];
            checked[k] += 0.0f * scores[i + k];
        }
    }
    for (std::int64_t i = whole; i < count; ++i) {
        highest[0] = scores[i] > highest[0] ? scores[i] : highest[0];
        checked[0] += 0.0f * scores[i];
    }
    const float most = *std::max_element(highest, highest + kPartial);
    const auto one = [=](float score) INVERT_FAST_INLINED {
        const float below = (score - most) * scale;
        return exponential(below < -87.0f ? -87.0f : below);
    };
    for (std::int64_t i = 0; i < whole; i += kPartial) {
        for (int k = 0; k < kPartial; ++k) total[k] += scores[i + k] = one(scores[i + k]);
    }
    for (std::int64_t i = whole; i < count; ++i) total[0] += scores[i] = one(scores[i]);
    float sum = 0;
    for (int k = 0; k < kPartial; ++k) sum += total[k] + checked[k];
    return sum;
}
constexpr Clones<exponentials_body> exponentials;

// What one query head of a lane sees, laid out for tiles: keys [panels of keys][d][16], values [panels of d][keys][16].
struct Seen {
    std::int64_t prefix, keys, padded;  // of the prefix, in all, and in whole panels

    Seen(const FanOut& op, std::int64_t b) {
        const std::int64_t length = op.lengths ? op.lengths[b] : 0;
        first = op.window > 0 ? std::max<std::int64_t>(0, length - op.window + 1) : 0;
        prefix = length - first;
        keys = prefix + op.tokens;
        padded = panels_of(keys) * kTileColumns;
    }

    void pack(const FanOut& op, std::int64_t b, std::int64_t head, float* key_panels, float* value_panels) const {
        const std::int64_t slot = op.slots ? op.slots[b] : b, d = op.width;
        for (std::int64_t j = 0; j < keys; ++j) {
            const bool own = j >= prefix;
            const float* key = own ? row(op.key, b, head, j - prefix) : row(op.prefix_key, slot, head, first + j);
            const float* value = own ? row(op.value, b, head, j - prefix) : row(op.prefix_value, slot, head, first + j);
            float* to_key = key_panels + j / kTileColumns * d * kTileColumns + j % kTileColumns;
            for (std::int64_t k = 0; k < d; ++k) to_key[k * kTileColumns] = key[k];
            for (std::int64_t k = 0; k < d; k += kTileColumns) {
                std::copy_n(value + k, std::min<std::int64_t>(kTileColumns, d - k),
                            value_panels + (k / kTileColumns * keys + j) * kTileColumns);
            }
        }
    }

   private:
    std::int64_t first;

    static const float* row(const HeadsView& view, std::int64_t b, std::int64_t h, std::int64_t n) {
        return view.data + b * view.stride_b + h * view.stride_h + n * view.stride_n;
    }
};

void attend(const FanOut& op, std::int64_t b, std::int64_t h, float* out) {
    const auto [tile, most, pairs, halves] = tiles();
    const Seen seen(op, b);
    const std::int64_t d = op.width, blocks = (op.tokens + most - 1) / most;
    const AlignedFloats keys(seen.padded * d), values(panels_of(d) * kTileColumns * seen.keys);
    const AlignedFloats scores(most * seen.padded);
    seen.pack(op, b, h / (op.query_heads / op.key_heads), keys.get(), values.get());
    const std::int64_t out_stride = op.query_heads * d;
    for (std::int64_t t = 0; t < blocks; ++t) {
        const std::int64_t from = op.tokens * t / blocks;
        const auto rows = static_cast<int>(op.tokens * (t + 1) / blocks - from);
        // Keys of this block of queries: from the first that its first query sees, in whole panels, to its last own.
        const auto first_of = [&](std::int64_t query) {
            return op.window > 0 ? std::max<std::int64_t>(0, seen.prefix + query + 1 - op.window) : 0;
        };
        const std::int64_t begin = first_of(from) / kTileColumns * kTileColumns, end = seen.prefix + from + rows;
        const float* query = op.query.data + b * op.query.stride_b + h * op.query.stride_h + from * op.query.stride_n;
        for (std::int64_t j = begin; j < end; j += kTileColumns) {
            tile[rows - 1](query, op.query.stride_n, keys.get() + j * d, nullptr, scores.get() + j, seen.padded, d);
        }
        float total[kMostTileRows];
        for (int r = 0; r < rows; ++r) {
            float* row = scores.get() + r * seen.padded;
            const std::int64_t low = first_of(from + r), high = seen.prefix + from + r + 1;
            total[r] = exponentials(row + low, high - low, op.scale);
            std::fill(row + begin, row + low, 0.0f);
            std::fill(row + high, row + end, 0.0f);
        }
        float mixed[kMostTileRows * kTileColumns];
        for (std::int64_t k = 0; k < d; k += kTileColumns) {
            tile[rows - 1](scores.get() + begin, seen.padded,
                           values.get() + (k / kTileColumns * seen.keys + begin) * kTileColumns, nullptr, mixed,
                           kTileColumns, end - begin);
            for (int r = 0; r < rows; ++r) {
                float* to = out + (b * op.tokens + from + r) * out_stride + h * d + k;
                for (std::int64_t c = 0; c < std::min<std::int64_t>(kTileColumns, d - k); ++c) {
                    to[c] = mixed[r * kTileColumns + c] / total[r];
                }
            }
        }
    }
}

// As fan_out_forward, but token n also sees the own tokens before it, and the window counts them. out [B, N, Hq, d],
// contiguous. A prefix is read where it lies, and what the diagonal hides is not computed. A score of infinity or NaN
// makes its token's output NaN.
void draft_attention(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                     const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, std::uintptr_t out,
                     int threads) {
    const FanOut op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    require_non_negative("threads", threads);
    const std::int64_t heads = op.batch * op.query_heads;
    if (heads == 0 || op.tokens == 0) return;
    const std::int64_t work = op.tokens * (op.longest + op.tokens) * op.width;
    parallel_rows(heads, useful_threads(heads, work, threads), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            attend(op, i / op.query_heads, i % op.query_heads, reinterpret_cast<float*>(out));
        }
    });
}

const Binding binding{[](py::module_& m) {
    m.def("draft_attention", &draft_attention, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "out_ptr"_a, "threads"_a = 0, Unlocked(),
          "Attention of N tokens in a row after each lane's prefix; arguments as of fan_out_forward.");
}};

}  // namespace
}  // namespace invert_fast
