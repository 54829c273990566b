// invert_fast._C: the CPU ops, each of which binds itself in a file of its own.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "binding.h"
#include "clones.h"
#include "parallel.h"

namespace invert_fast {
namespace {

// In the order of Isa.
constexpr const char* kIsas[] = {"default", "avx2", "avx512"};
constexpr const char* kTitles[] = {"the default", "AVX2", "AVX-512"};
constexpr std::size_t kCompiled = INVERT_FAST_X86_TARGETS ? std::size(kIsas) : 1;

// How many of them this machine has as well.
std::size_t usable_isas() {
#if INVERT_FAST_X86_TARGETS
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    if (!__builtin_cpu_supports("avx512f")) return 2;
#endif
    return kCompiled;
}

std::vector<std::string> first_isas(std::size_t count) { return {kIsas, kIsas + count}; }

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
#if defined(__SANITIZE_ADDRESS__)
    constexpr bool sanitized = true;
#else
    constexpr bool sanitized = false;
#endif
    return py::dict("version"_a = INVERT_FAST_VERSION, "compiler"_a = compiler, "sanitized"_a = sanitized,
                    "clones"_a = first_isas(kCompiled));
}

void use_isa(const std::string& wanted) {
    const std::size_t known = std::find(std::begin(kIsas), std::end(kIsas), wanted) - std::begin(kIsas);
    const std::size_t last = usable_isas() - 1;
    if (wanted.empty() || known <= last) {
        isa_in_use = static_cast<Isa>(wanted.empty() ? last : known);
        return;
    }
    std::string message = "INVERT_FAST_ISA='" + wanted + "'";
    if (known == std::size(kIsas)) {
        message += " is unknown";
    } else {
        message += std::string(": this ") + (known < kCompiled ? "processor" : "build") + " has no " + kTitles[known];
    }
    message += std::string(", expected ") + kIsas[0];
    for (std::size_t i = 1; i <= last; ++i) message += (i < last ? ", " : " or ") + std::string(kIsas[i]);
    throw std::invalid_argument(message);
}

const Binding binding{[](py::module_& m) {
    m.def("share_team", [](std::uintptr_t team) { shared_team = reinterpret_cast<Team>(team); }, "team"_a,
          "The address of GOMP_parallel in the OpenMP runtime whose threads all ops are to use; 0: their own.");
    m.def("use_isa", &use_isa, "name"_a,
          "Let all ops use one instruction set of isas(); \"\": the widest. Not while an op runs.");
    m.def("isa", [] { return kIsas[static_cast<std::size_t>(isa_in_use)]; }, "The one in use.");
    m.def("isas", [] { return first_isas(usable_isas()); }, "Those of this build and machine, from narrow to wide.");
    m.def("build_info", &build_info, "version, compiler, sanitized, and the instruction sets compiled in.");
}};

}  // namespace
}  // namespace invert_fast

PYBIND11_MODULE(_C, m) {
    m.doc() =
        "CPU ops of invert_fast. Tensors are passed as data_ptr() integers, strides in elements. threads=0: every core.";
    invert_fast::use_isa("");
    invert_fast::Binding::define_all(m);
}
