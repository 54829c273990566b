// invert_fast._C: the CPU ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "arguments.h"
#include "clones.h"
#include "residuals.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

py::dict build_info() {
#if defined(__clang__)
    const std::string compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
    const std::string compiler = "gcc " __VERSION__;
#elif defined(_MSC_VER)
    const std::string compiler = "msvc " + std::to_string(_MSC_VER);
#else
    const std::string compiler = "unknown";
#endif
    return py::dict("version"_a = INVERT_FAST_VERSION, "compiler"_a = compiler,
                    "clones"_a = std::vector<std::string>{INVERT_FAST_CLONE_NAMES});
}

void residuals(std::uintptr_t predictions, std::uintptr_t targets, std::uintptr_t out, std::int64_t B, std::int64_t C,
               std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c, std::int64_t target_stride_b,
               bool pred_is_bf16, bool target_is_bf16, int threads) {
    const auto op = invert_fast::pack_residuals(predictions, targets, out, B, C, D, pred_stride_b, pred_stride_c,
                                                target_stride_b, pred_is_bf16, target_is_bf16);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::residuals(op, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU ops of invert_fast. Tensors are passed as data_ptr() integers, strides in elements.";
    m.def("residuals", &residuals, "predictions_ptr"_a, "targets_ptr"_a, "out_ptr"_a, "B"_a, "C"_a, "D"_a,
          "pred_stride_b"_a, "pred_stride_c"_a, "target_stride_b"_a, "pred_is_bf16"_a, "target_is_bf16"_a,
          "threads"_a = 0,
          "out[b, c] = ||predictions[b, c] - targets[b]|| / max(||targets[b]||, 1e-30); predictions [B, C, D] and "
          "targets [B, D] are fp32 or bf16, out [B, C] is contiguous fp32. threads=0 uses every core.");
    m.def("build_info", &build_info, "version, compiler and the instruction sets compiled in (the CPU picks one).");
}
