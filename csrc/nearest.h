// The rows of an embedding table nearest to each of several queries.
#pragma once
#include <cstdint>

namespace invert_fast {

enum class Metric { l1, l2, cosine, dot };

// Nearest first, ties to the lower id; a row that is banned, or at a distance of +inf or NaN, is never returned. A query
// with fewer than `count` rows left ends in +inf and id -1.
// queries [B, D] fp32, table [V, D] fp32 or bf16, banned [B, V] bytes or null; last dimensions contiguous, strides in
// elements. distances [B, count] fp32 and ids [B, count] int64: contiguous.
struct Nearest {
    const float* queries;
    const void* table;
    const std::uint8_t* banned;
    float* distances;
    std::int64_t* ids;
    std::int64_t batch, rows, width, count;
    std::int64_t query_stride, table_stride, banned_stride;
    Metric metric;
    bool table_is_bf16;
};

}  // namespace invert_fast
