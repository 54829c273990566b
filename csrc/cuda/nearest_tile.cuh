// Many queries: bound by arithmetic. A block holds the sums of queries × rows in registers and walks along the width in
// slices, which pass through shared memory: while one is summed, the next is on its way.
#pragma once
#include <cuda_pipeline.h>

#include "rank.cuh"

namespace invert_fast {

constexpr int kTileThreads = 128, kTileSide = 16;  // threads side by side along the rows, the others along the queries
constexpr int kTileQueryThreads = kTileThreads / kTileSide;
constexpr int kThreadRows = 8;                        // rows of one thread, kTileSide apart
constexpr int kTileRows = kTileSide * kThreadRows;    // rows of one block
constexpr int kSlice = 16;                            // elements of the width in shared memory at a time
constexpr int kStep = 4;                              // and in registers

// A row's slice and what keeps the rows that neighbouring threads read in different banks. Rows stay aligned.
template <class Scalar>
constexpr int kSliceStride = kSlice + kWideLoad / static_cast<int>(sizeof(Scalar));

template <class Scalar, int queries>
struct Slice {
    alignas(kWideLoad) float queries_[queries][kSliceStride<float>];
    alignas(kWideLoad) Scalar rows_[kTileRows][kSliceStride<Scalar>];
};

// Sends elements [column, column + kSlice) of rows [first, first + rows) to shared memory, zeros past the width. Rows
// past the last repeat it.
template <int rows, class Scalar>
__device__ void send(Scalar (&to)[rows][kSliceStride<Scalar>], const Scalar* from, std::int64_t stride,
                     std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t width, bool wide) {
    constexpr int pack = kWideLoad / static_cast<int>(sizeof(Scalar)), packs = kSlice / pack;
    if (wide) {
#pragma unroll
        for (int i = threadIdx.x; i < rows * packs; i += kTileThreads) {
            const int r = i / packs, at = i % packs * pack;
            const std::int64_t row = first + r < count ? first + r : count - 1;
            const bool there = column + at < width;  // whole packs are: the width is a multiple of them
            __pipeline_memcpy_async(&to[r][at], from + row * stride + (there ? column + at : 0), kWideLoad,
                                    there ? 0 : kWideLoad);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < rows * kSlice; i += kTileThreads) {
            const int r = i / kSlice, at = i % kSlice;
            const std::int64_t row = first + r < count ? first + r : count - 1;
            to[r][at] = column + at < width ? from[row * stride + column + at] : Scalar(0);
        }
    }
}

template <class Scalar>
__device__ float squares_of(const Scalar* slice) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kSlice; ++i) squares += widen(slice[i]) * widen(slice[i]);
    return squares;
}

// 3 blocks of a multiprocessor: 168 registers a thread.
template <class Term, class Scalar, int thread_queries>
__global__ void __launch_bounds__(kTileThreads, 3)
    rank_tile(Nearest op, Rank* ranks, std::int64_t parts, bool keep_all, bool wide) {
    constexpr int queries = kTileQueryThreads * thread_queries;
    // The sums of a thread lie in registers, which no index reaches: what is done with them afterwards reads them here.
    __shared__ union {
        Slice<Scalar, queries> slices[2];
        float totals[thread_queries][kThreadRows][kTileThreads];
    } shared;
    // Blocks of one tile of rows are neighbours: the later ones find it in the cache.
    const std::int64_t groups = (op.batch + queries - 1) / queries;
    const std::int64_t tile = blockIdx.x / groups, first_query = blockIdx.x % groups * queries;
    const std::int64_t first_row = tile * kTileRows;
    const int x = threadIdx.x % kTileSide, y = threadIdx.x / kTileSide;

    const auto send_slice = [&](std::int64_t slice) {
        auto& to = shared.slices[slice % 2];
        const std::int64_t column = slice * kSlice;
        send<queries>(to.queries_, op.queries, op.query_stride, first_query, op.batch, column, op.width, wide);
        send<kTileRows>(to.rows_, static_cast<const Scalar*>(op.table), op.table_stride, first_row, op.rows, column,
                        op.width, wide);
    };

    float totals[thread_queries][kThreadRows] = {};
    float query_squares = 0, row_squares = 0;  // of the query and the row whose number is the thread's
    const std::int64_t count = (op.width + kSlice - 1) / kSlice;
    if (count > 0) send_slice(0);
    __pipeline_commit();
    for (std::int64_t s = 0; s < count; ++s) {
        if (s + 1 < count) send_slice(s + 1);
        __pipeline_commit();  // also of nothing: what is waited for is all but the latest
        __pipeline_wait_prior(1);
        __syncthreads();
        const auto& slice = shared.slices[s % 2];
#pragma unroll 2
        for (int k = 0; k < kSlice; k += kStep) {
            Pack<float, kStep> q[thread_queries];
#pragma unroll
            for (int n = 0; n < thread_queries; ++n) {
                q[n] = reinterpret_cast<const Pack<float, kStep>&>(slice.queries_[y + n * kTileQueryThreads][k]);
            }
#pragma unroll
            for (int r = 0; r < kThreadRows; ++r) {
                const auto e = reinterpret_cast<const Pack<Scalar, kStep>&>(slice.rows_[x + r * kTileSide][k]);
#pragma unroll
                for (int n = 0; n < thread_queries; ++n) {
#pragma unroll
                    for (int j = 0; j < kStep; ++j) Term::add(totals[n][r], q[n].values[j], widen(e.values[j]));
                }
            }
        }
        if constexpr (Term::kLengths) {
            row_squares += squares_of(slice.rows_[threadIdx.x]);
            if (threadIdx.x < queries) query_squares += squares_of(slice.queries_[threadIdx.x]);
        }
        __syncthreads();  // nobody reads this slice any more: the one after the next takes its place
    }

    static_assert(kTileRows == kTileThreads && queries <= kTileThreads, "a thread has one row and one query");
    __shared__ float row_lengths[kTileRows], query_lengths[queries];
    if constexpr (Term::kLengths) {
        row_lengths[threadIdx.x] = length(row_squares);
        if (threadIdx.x < queries) query_lengths[threadIdx.x] = length(query_squares);
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < thread_queries; ++n) {
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) shared.totals[n][r][threadIdx.x] = totals[n][r];
    }
#pragma unroll 1
    for (int n = 0; n < thread_queries; ++n) {
        const int own_query = y + n * kTileQueryThreads;
        const std::int64_t b = first_query + own_query;
        Rank best = kFarthest;
#pragma unroll 1
        for (int r = 0; r < kThreadRows; ++r) {
            const int own_row = x + r * kTileSide;
            const std::int64_t v = first_row + own_row;
            if (b >= op.batch || v >= op.rows) break;
            const float total = shared.totals[n][r][threadIdx.x];
            float distance = Term::distance(total, 1, 1);
            if constexpr (Term::kLengths) {
                distance = Term::distance(total, query_lengths[own_query], row_lengths[own_row]);
            }
            const Rank rank = rank_of(distance, is_banned(op, b, v), v);
            best = nearer(best, rank);
            if (keep_all) ranks[b * op.rows + v] = rank;
        }
        best = nearest_of<kTileSide>(best);
        if (!keep_all && x == 0 && b < op.batch) ranks[b * parts + tile] = best;
    }
}

}  // namespace invert_fast
