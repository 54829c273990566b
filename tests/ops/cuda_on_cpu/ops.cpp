// The entry points of csrc/cuda in C, for ctypes: null, or what went wrong.
#include <string>

#include "../../../csrc/cuda/nearest.cuh"
#include "../../../csrc/cuda/residuals.cuh"
#include "block.h"

namespace {

std::string message;

template <class Call>
const char* run(const Call& call) {
    try {
        const cudaError_t status = call();
        if (status == cudaSuccess) return nullptr;
        message = "CUDA error " + std::to_string(status);
    } catch (const std::exception& error) {
        message = error.what();
    }
    return message.c_str();
}

}  // namespace

extern "C" {

void set_order(bool falling, bool copy_at_once) { cuda_on_cpu::order = {falling, copy_at_once}; }

std::int64_t rank_parts(std::int64_t batch, std::int64_t rows, int multiprocessors) {
    return invert_fast::rank_parts(batch, rows, multiprocessors);
}

const char* rank_rows(const float* queries, const void* table, const std::uint8_t* banned, invert_fast::Rank* ranks,
                      std::int64_t B, std::int64_t V, std::int64_t D, std::int64_t parts, std::int64_t query_stride,
                      std::int64_t table_stride, std::int64_t banned_stride, int metric, bool table_is_bf16,
                      bool keep_all) {
    const invert_fast::Nearest op{queries,       table,        banned,        nullptr, nullptr, B, V, D, 0,
                                  query_stride,  table_stride, banned_stride, static_cast<invert_fast::Metric>(metric),
                                  table_is_bf16};
    return run([&] { return invert_fast::rank_rows(op, ranks, parts, keep_all, nullptr); });
}

const char* unpack_ranks(const invert_fast::Rank* ranks, float* distances, std::int64_t* ids, std::int64_t count,
                         std::int64_t parts) {
    return run([&] { return invert_fast::unpack_ranks(ranks, parts, distances, ids, count, nullptr); });
}

const char* residuals(const void* predictions, const void* targets, float* out, std::int64_t B, std::int64_t C,
                      std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c,
                      std::int64_t target_stride_b, bool pred_is_bf16, bool target_is_bf16) {
    const invert_fast::Residuals op{predictions,     targets,       out,           B,           C, D, pred_stride_b,
                                    pred_stride_c, target_stride_b, pred_is_bf16, target_is_bf16};
    return run([&] { return invert_fast::residuals(op, nullptr); });
}
}
