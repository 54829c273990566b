// The GPU twin of `nearest.h`: the same distances on device pointers, queued on a stream.
#pragma once
#include <cuda_runtime_api.h>

#include "../nearest.h"

namespace invert_fast {

// A distance and the id of its row as one int64 that sorts by distance, then by id.
using Rank = long long;

// How many ranks a query gets from `rank_rows` when it keeps the least of each block: its one nearest row is among
// them. multiprocessors: of the device that will run it.
std::int64_t rank_parts(std::int64_t batch, std::int64_t rows, int multiprocessors);

// Of op.queries, op.table and op.banned (op.count, op.distances and op.ids are not looked at). With keep_all, ranks
// [batch, rows] of every row; else [batch, parts], the least of each block, parts as rank_parts said.
cudaError_t rank_rows(const Nearest& op, Rank* ranks, std::int64_t parts, bool keep_all, cudaStream_t stream);

// The least of each row of ranks [count, parts] as a distance and an id; id -1 at a distance of +inf.
cudaError_t unpack_ranks(const Rank* ranks, std::int64_t parts, float* distances, std::int64_t* ids, std::int64_t count,
                         cudaStream_t stream);

}  // namespace invert_fast
