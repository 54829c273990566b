// invert_fast._cuda: the same ops on device pointers. The CUDA runtime is linked statically and finds the driver when
// first called, so the module also imports on a machine without one.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "../arguments.h"
#include "nearest.cuh"
#include "residuals.cuh"

namespace py = pybind11;
using namespace py::literals;

namespace {

void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // the error was reported: the next call must not find it again
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
}

std::vector<std::string> architectures() {
    std::vector<std::string> names;
    std::istringstream list(INVERT_FAST_CUDA_ARCHS);
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
    return names;
}

// Makes the device that owns `pointer` current, and puts the former one back.
class OnDeviceOf {
   public:
    OnDeviceOf(const char* name, const void* pointer) {
        cudaPointerAttributes attributes{};
        check(cudaPointerGetAttributes(&attributes, pointer), "cudaPointerGetAttributes");
        if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
            throw std::invalid_argument(std::string(name) +
                                        " must point to GPU memory; use invert_fast._C for CPU tensors");
        }
        check(cudaGetDevice(&former_), "cudaGetDevice");
        check(cudaSetDevice(attributes.device), "cudaSetDevice");
    }
    ~OnDeviceOf() { (void)cudaSetDevice(former_); }
    OnDeviceOf(const OnDeviceOf&) = delete;
    OnDeviceOf& operator=(const OnDeviceOf&) = delete;

   private:
    int former_ = 0;
};

void residuals(std::uintptr_t predictions, std::uintptr_t targets, std::uintptr_t out, std::int64_t B, std::int64_t C,
               std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c, std::int64_t target_stride_b,
               bool pred_is_bf16, bool target_is_bf16, std::uintptr_t stream) {
    const auto op = invert_fast::pack_residuals(predictions, targets, out, B, C, D, pred_stride_b, pred_stride_c,
                                                target_stride_b, pred_is_bf16, target_is_bf16);
    if (B == 0 || C == 0) return;  // an empty tensor has a null pointer, which belongs to no device
    py::gil_scoped_release unlocked;
    OnDeviceOf device("predictions_ptr", D == 0 ? op.out : op.predictions);
    check(invert_fast::residuals(op, reinterpret_cast<cudaStream_t>(stream)), "residuals");
}

std::int64_t rank_parts(int device, std::int64_t B, std::int64_t V) {
    invert_fast::require_non_negative("B", B);
    invert_fast::require_non_negative("V", V);
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "rank_parts");
    return invert_fast::rank_parts(B, V, multiprocessors);
}

void rank_rows(std::uintptr_t queries, std::uintptr_t table, std::uintptr_t banned, std::uintptr_t ranks,
               std::int64_t B, std::int64_t V, std::int64_t D, std::int64_t parts, std::int64_t query_stride,
               std::int64_t table_stride, std::int64_t banned_stride, int metric, bool table_is_bf16, bool keep_all,
               std::uintptr_t stream) {
    const auto op = invert_fast::pack_nearest(queries, table, banned, 0, 0, B, V, D, 0, query_stride, table_stride,
                                              banned_stride, metric, table_is_bf16);
    if (B == 0 || V == 0) return;
    auto* out = reinterpret_cast<invert_fast::Rank*>(ranks);
    py::gil_scoped_release unlocked;
    OnDeviceOf device("ranks_ptr", out);
    check(invert_fast::rank_rows(op, out, parts, keep_all, reinterpret_cast<cudaStream_t>(stream)), "rank_rows");
}

void unpack_ranks(std::uintptr_t ranks, std::uintptr_t distances, std::uintptr_t ids, std::int64_t count,
                  std::int64_t parts, std::uintptr_t stream) {
    invert_fast::require_non_negative("count", count);
    invert_fast::require_non_negative("parts", parts);
    if (count == 0) return;
    const auto* in = reinterpret_cast<const invert_fast::Rank*>(ranks);
    py::gil_scoped_release unlocked;
    OnDeviceOf device("ranks_ptr", in);
    check(invert_fast::unpack_ranks(in, parts, reinterpret_cast<float*>(distances),
                                    reinterpret_cast<std::int64_t*>(ids), count, reinterpret_cast<cudaStream_t>(stream)),
          "unpack_ranks");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA ops of invert_fast. Tensors are passed as data_ptr() integers, strides in elements.";
    m.def("residuals", &residuals, "predictions_ptr"_a, "targets_ptr"_a, "out_ptr"_a, "B"_a, "C"_a, "D"_a,
          "pred_stride_b"_a, "pred_stride_c"_a, "target_stride_b"_a, "pred_is_bf16"_a, "target_is_bf16"_a, "stream"_a,
          "The op of _C.residuals, queued on a stream of the device that holds the tensors. Does not wait.");
    m.def("rank_parts", &rank_parts, "device"_a, "B"_a, "V"_a,
          "How many ranks of a query rank_rows leaves on this device when it keeps the least of each block.");
    m.def("rank_rows", &rank_rows, "queries_ptr"_a, "table_ptr"_a, "banned_ptr"_a, "ranks_ptr"_a, "B"_a, "V"_a, "D"_a,
          "parts"_a, "query_stride"_a, "table_stride"_a, "banned_stride"_a, "metric"_a, "table_is_bf16"_a, "keep_all"_a,
          "stream"_a,
          "Ranks (int64: a distance and an id, sorted by both) of the rows of table [V, D] (fp32 or bf16) for queries "
          "[B, D] (fp32); banned [B, V] bytes or 0. metric: 0 l1, 1 l2, 2 cosine, 3 dot. parts: of rank_parts. Writes "
          "ranks [B, V] with keep_all, else [B, parts] of which the least is the nearest row's. Does not wait.");
    m.def("unpack_ranks", &unpack_ranks, "ranks_ptr"_a, "distances_ptr"_a, "ids_ptr"_a, "count"_a, "parts"_a, "stream"_a,
          "distances (fp32) and ids (int64) [count] of the least of each row of ranks [count, parts]; id -1 at +inf.");
    m.def("device_count", &device_count, "GPUs in sight; 0 without a GPU or a driver, never an error.");
    m.def("architectures", &architectures, "The architectures compiled in, as CMake names them.");
}
