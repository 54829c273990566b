// Few queries: bound by memory. Each warp takes a few rows at a time, each lane a wide load of every one of them, and
// the table passes by once.
#pragma once
#include "rank.cuh"

namespace invert_fast {

constexpr int kStreamThreads = 256;
constexpr int kStreamWarps = kStreamThreads / kWarp;
constexpr int kStreamRows = 4;     // of a warp at a time: as many loads of each lane are under way
constexpr int kStreamQueries = 4;  // at most; with more, the arithmetic of a tile is the limit

// Blocks that a multiprocessor holds, of those that the rows are dealt out to: 64 registers a thread, or 128.
constexpr int stream_blocks(std::int64_t queries) { return queries == 1 ? 4 : 2; }

template <class Term, class Scalar, int pack, int queries>
__global__ void __launch_bounds__(kStreamThreads, stream_blocks(queries))
    rank_stream(Nearest op, Rank* ranks, std::int64_t parts, bool keep_all) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t packs = op.width / pack;
    const Pack<float, pack>* query[queries];
    __shared__ float query_lengths[queries];
    Rank best[queries];
#pragma unroll
    for (int n = 0; n < queries; ++n) {
        // In place of a query that is not there, the last one; its ranks are not written.
        const std::int64_t b = n < op.batch ? n : op.batch - 1;
        query[n] = reinterpret_cast<const Pack<float, pack>*>(op.queries + b * op.query_stride);
        best[n] = kFarthest;
        if constexpr (Term::kLengths) {
            float squares = 0;
            for (std::int64_t i = lane; i < packs; i += kWarp) {
                const auto q = query[n][i];
                for (int j = 0; j < pack; ++j) squares += q.values[j] * q.values[j];
            }
            squares = warp_sum(squares);
            if (threadIdx.x == 0) query_lengths[n] = length(squares);
        }
    }
    if constexpr (Term::kLengths) __syncthreads();

    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kStreamWarps * kStreamRows;
    for (std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kStreamWarps + warp) * kStreamRows;
         first < op.rows; first += stride) {
        const Pack<Scalar, pack>* row[kStreamRows];
        float totals[queries][kStreamRows] = {}, squares[kStreamRows] = {};
#pragma unroll
        for (int r = 0; r < kStreamRows; ++r) {
            const std::int64_t v = first + r < op.rows ? first + r : op.rows - 1;
            row[r] = reinterpret_cast<const Pack<Scalar, pack>*>(static_cast<const Scalar*>(op.table) +
                                                                 v * op.table_stride);
        }
#pragma unroll 1
        for (std::int64_t i = lane; i < packs; i += kWarp) {
            Pack<Scalar, pack> e[kStreamRows];
#pragma unroll
            for (int r = 0; r < kStreamRows; ++r) e[r] = load_once(row[r] + i);
#pragma unroll
            for (int n = 0; n < queries; ++n) {
                const auto q = query[n][i];
#pragma unroll
                for (int r = 0; r < kStreamRows; ++r) {
#pragma unroll
                    for (int j = 0; j < pack; ++j) Term::add(totals[n][r], q.values[j], widen(e[r].values[j]));
                }
            }
            if constexpr (Term::kLengths) {
#pragma unroll
                for (int r = 0; r < kStreamRows; ++r) {
#pragma unroll
                    for (int j = 0; j < pack; ++j) {
                        squares[r] += widen(e[r].values[j]) * widen(e[r].values[j]);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kStreamRows; ++r) {
            const std::int64_t v = first + r;
            const float row_length = Term::kLengths ? length(warp_sum(squares[r])) : 1;
#pragma unroll
            for (int n = 0; n < queries; ++n) {
                const float total = warp_sum(totals[n][r]);  // of every lane, also where there is no row
                if (v >= op.rows || n >= op.batch) continue;
                const float distance = Term::distance(total, Term::kLengths ? query_lengths[n] : 1, row_length);
                const Rank rank = rank_of(distance, is_banned(op, n, v), v);
                best[n] = nearer(best[n], rank);
                if (keep_all && lane == 0) ranks[n * op.rows + v] = rank;
            }
        }
    }

    if (keep_all) return;
    __shared__ Rank of_warps[kStreamWarps][queries];
    if (lane == 0) {
        for (int n = 0; n < queries; ++n) of_warps[warp][n] = best[n];
    }
    __syncthreads();
    const int n = threadIdx.x;
    if (n < queries && n < op.batch) {
        Rank least = kFarthest;
        for (int w = 0; w < kStreamWarps; ++w) least = nearer(least, of_warps[w][n]);
        ranks[n * parts + blockIdx.x] = least;
    }
}

}  // namespace invert_fast
