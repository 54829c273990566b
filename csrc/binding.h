// How a file of csrc adds its op to invert_fast._C; no other file names it.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace invert_fast {

namespace py = pybind11;
using namespace pybind11::literals;

// `const Binding binding{[](py::module_& m) { m.def(...); }};` at the end of the file.
class Binding {
   public:
    explicit Binding(void (*define)(py::module_&)) : define_(define), former_(last_) { last_ = this; }
    static void define_all(py::module_& m) {
        for (const Binding* one = last_; one; one = one->former_) one->define_(m);
    }

   private:
    void (*define_)(py::module_&);
    const Binding* former_;
    inline static const Binding* last_ = nullptr;
};

using Unlocked = py::call_guard<py::gil_scoped_release>;  // other Python threads run while an op does

}  // namespace invert_fast
