// Nearest rows of an embedding table on a GPU: which kernel ranks them, and what a rank says.
#include "nearest.cuh"

#include <algorithm>

#include "nearest_stream.cuh"
#include "nearest_tile.cuh"

namespace invert_fast {
namespace {

constexpr int kUnpackThreads = 256;

std::int64_t quotient(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; }

__global__ void __launch_bounds__(kUnpackThreads)
    unpack(const Rank* ranks, std::int64_t parts, float* distances, std::int64_t* ids, std::int64_t count) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * (kUnpackThreads / kWarp) + threadIdx.x / kWarp;
    if (n >= count) return;
    Rank rank = kFarthest;
    for (std::int64_t i = lane; i < parts; i += kWarp) rank = nearer(rank, ranks[n * parts + i]);
    rank = nearest_of<kWarp>(rank);
    if (lane != 0) return;
    const int bits = static_cast<int>(rank >> 32);
    ids[n] = bits == kInfinity ? -1 : static_cast<std::int64_t>(rank & 0xffffffff);
    distances[n] = __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
}

// Whether every row of the table and every query starts at, and holds a whole number of, wide loads.
template <class Scalar>
bool is_wide(const Nearest& op) {
    return rows_start_at(static_cast<const Scalar*>(op.table), op.table_stride, kWideLoad) &&
           rows_start_at(op.queries, op.query_stride, kWideLoad) && op.width * sizeof(Scalar) % kWideLoad == 0;
}

template <class Term, class Scalar>
cudaError_t rank_rows(const Nearest& op, Rank* ranks, std::int64_t parts, bool keep_all, cudaStream_t stream) {
    constexpr int pack = kWideLoad / static_cast<int>(sizeof(Scalar));
    const bool wide = is_wide<Scalar>(op);
    if (op.batch <= kStreamQueries) {
        const auto kernel = op.batch == 1 ? (wide ? rank_stream<Term, Scalar, pack, 1> : rank_stream<Term, Scalar, 1, 1>)
                                          : (wide ? rank_stream<Term, Scalar, pack, kStreamQueries>
                                                  : rank_stream<Term, Scalar, 1, kStreamQueries>);
        return enqueue(kernel, parts, kStreamThreads, stream, op, ranks, parts, keep_all);
    }
    const auto launch = [&](auto kernel, int thread_queries) {
        const std::int64_t groups = quotient(op.batch, kTileQueryThreads * thread_queries);
        return enqueue(kernel, parts * groups, kTileThreads, stream, op, ranks, parts, keep_all, wide);
    };
    constexpr int few = 2, many = 8;
    return op.batch <= kTileQueryThreads * few ? launch(rank_tile<Term, Scalar, few>, few)
                                               : launch(rank_tile<Term, Scalar, many>, many);
}

template <class Scalar>
cudaError_t rank_rows(const Nearest& op, Rank* ranks, std::int64_t parts, bool keep_all, cudaStream_t stream) {
    switch (op.metric) {
        case Metric::l1: return rank_rows<L1, Scalar>(op, ranks, parts, keep_all, stream);
        case Metric::l2: return rank_rows<L2, Scalar>(op, ranks, parts, keep_all, stream);
        case Metric::cosine: return rank_rows<Cosine, Scalar>(op, ranks, parts, keep_all, stream);
        case Metric::dot: return rank_rows<Dot, Scalar>(op, ranks, parts, keep_all, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

std::int64_t rank_parts(std::int64_t batch, std::int64_t rows, int multiprocessors) {
    if (batch > kStreamQueries) return quotient(rows, kTileRows);
    return std::min<std::int64_t>(quotient(rows, kStreamWarps * kStreamRows),
                                  static_cast<std::int64_t>(multiprocessors) * stream_blocks(batch));
}

cudaError_t rank_rows(const Nearest& op, Rank* ranks, std::int64_t parts, bool keep_all, cudaStream_t stream) {
    if (op.batch == 0 || op.rows == 0) return cudaSuccess;
    const bool by_tiles = op.batch > kStreamQueries;
    if (parts < 1 || (by_tiles && parts != quotient(op.rows, kTileRows))) return cudaErrorInvalidValue;
    return op.table_is_bf16 ? rank_rows<std::uint16_t>(op, ranks, parts, keep_all, stream)
                            : rank_rows<float>(op, ranks, parts, keep_all, stream);
}

cudaError_t unpack_ranks(const Rank* ranks, std::int64_t parts, float* distances, std::int64_t* ids, std::int64_t count,
                         cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    return enqueue(unpack, quotient(count, kUnpackThreads / kWarp), kUnpackThreads, stream, ranks, parts, distances, ids,
                   count);
}

}  // namespace invert_fast
