// invert_fast._cuda: the same ops on device pointers. The CUDA runtime is linked statically and finds the driver when
// first called, so the module also imports on a machine without one.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "../arguments.h"
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
    explicit OnDeviceOf(const void* pointer) {
        cudaPointerAttributes attributes{};
        check(cudaPointerGetAttributes(&attributes, pointer), "cudaPointerGetAttributes");
        if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
            throw std::invalid_argument("predictions_ptr must point to GPU memory; use invert_fast._C for CPU tensors");
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
    OnDeviceOf device(D == 0 ? op.out : op.predictions);
    check(invert_fast::residuals(op, reinterpret_cast<cudaStream_t>(stream)), "residuals");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA ops of invert_fast. Tensors are passed as data_ptr() integers, strides in elements.";
    m.def("residuals", &residuals, "predictions_ptr"_a, "targets_ptr"_a, "out_ptr"_a, "B"_a, "C"_a, "D"_a,
          "pred_stride_b"_a, "pred_stride_c"_a, "target_stride_b"_a, "pred_is_bf16"_a, "target_is_bf16"_a, "stream"_a,
          "The op of _C.residuals, queued on a stream of the device that holds the tensors. Does not wait.");
    m.def("device_count", &device_count, "GPUs in sight; 0 without a GPU or a driver, never an error.");
    m.def("architectures", &architectures, "The architectures compiled in, as CMake names them.");
}
