// invert_fast._C: the CPU ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "adam.h"
#include "arguments.h"
#include "best_two.h"
#include "ceiling.h"
#include "clones.h"
#include "draft.h"
#include "fan_out.h"
#include "gelu.h"
#include "nearest.h"
#include "parallel.h"
#include "product.h"
#include "residuals.h"
#include "tile.h"

namespace py = pybind11;
using namespace py::literals;

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
        invert_fast::isa_in_use = static_cast<invert_fast::Isa>(wanted.empty() ? last : known);
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

void residuals(std::uintptr_t predictions, std::uintptr_t targets, std::uintptr_t out, std::int64_t B, std::int64_t C,
               std::int64_t D, std::int64_t pred_stride_b, std::int64_t pred_stride_c, std::int64_t target_stride_b,
               bool pred_is_bf16, bool target_is_bf16, int threads) {
    const auto op = invert_fast::pack_residuals(predictions, targets, out, B, C, D, pred_stride_b, pred_stride_c,
                                                target_stride_b, pred_is_bf16, target_is_bf16);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::residuals(op, threads);
}

void nearest_tokens(std::uintptr_t queries, std::uintptr_t table, std::uintptr_t banned, std::uintptr_t distances,
                    std::uintptr_t ids, std::int64_t B, std::int64_t V, std::int64_t D, std::int64_t count,
                    std::int64_t query_stride, std::int64_t table_stride, std::int64_t banned_stride, int metric,
                    bool table_is_bf16, int threads) {
    const auto op = invert_fast::pack_nearest(queries, table, banned, distances, ids, B, V, D, count, query_stride,
                                              table_stride, banned_stride, metric, table_is_bf16);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::nearest_tokens(op, threads);
}

void adam_step(std::uintptr_t proxy, std::uintptr_t grad, std::uintptr_t mean, std::uintptr_t square,
               std::uintptr_t steps, std::uintptr_t active, std::int64_t B, std::int64_t D, std::int64_t proxy_stride,
               std::int64_t grad_stride, std::int64_t mean_stride, std::int64_t square_stride, double lr,
               double total_steps, double clip, double weight_decay, double beta1, double beta2, double eps,
               int threads) {
    invert_fast::require_non_negative("B", B);
    invert_fast::require_non_negative("D", D);
    invert_fast::require_non_negative("threads", threads);
    const invert_fast::AdamStep op{reinterpret_cast<float*>(proxy),
                                   reinterpret_cast<const float*>(grad),
                                   reinterpret_cast<float*>(mean),
                                   reinterpret_cast<float*>(square),
                                   reinterpret_cast<std::int64_t*>(steps),
                                   reinterpret_cast<const std::uint8_t*>(active),
                                   B,
                                   D,
                                   proxy_stride,
                                   grad_stride,
                                   mean_stride,
                                   square_stride,
                                   lr,
                                   total_steps,
                                   clip,
                                   weight_decay,
                                   beta1,
                                   beta2,
                                   eps};
    py::gil_scoped_release unlocked;
    invert_fast::adam_step(op, threads);
}

void gelu(std::uintptr_t x, std::uintptr_t out, std::int64_t count, int threads) {
    invert_fast::require_non_negative("count", count);
    py::gil_scoped_release unlocked;
    invert_fast::gelu(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out), count, threads);
}

void gelu_backward(std::uintptr_t grad, std::uintptr_t x, std::uintptr_t out, std::int64_t count, int threads) {
    invert_fast::require_non_negative("count", count);
    py::gil_scoped_release unlocked;
    invert_fast::gelu_backward(reinterpret_cast<const float*>(grad), reinterpret_cast<const float*>(x),
                               reinterpret_cast<float*>(out), count, threads);
}

using View = std::array<std::int64_t, 4>;  // data_ptr() and the strides of batch, head and token

invert_fast::HeadsView heads_view(const View& view) {
    return {reinterpret_cast<const float*>(view[0]), view[1], view[2], view[3]};
}

invert_fast::FanOut pack_fan_out(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                                 const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale) {
    for (const std::int64_t size : sizes) invert_fast::require_non_negative("a size", size);
    invert_fast::require_non_negative("window", window);
    const auto [B, Hq, Hkv, N, d, longest] = sizes;
    return {heads_view(views[0]),
            heads_view(views[1]),
            heads_view(views[2]),
            heads_view(views[3]),
            heads_view(views[4]),
            reinterpret_cast<const std::int64_t*>(lengths),
            reinterpret_cast<const std::int64_t*>(slots),
            B,
            Hq,
            Hkv,
            N,
            d,
            longest,
            window,
            scale};
}

void fan_out_forward(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                     const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, std::uintptr_t out,
                     std::uintptr_t weights, int threads) {
    const auto op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    py::gil_scoped_release unlocked;
    invert_fast::fan_out_forward(op, reinterpret_cast<float*>(out), reinterpret_cast<float*>(weights), threads);
}

void fan_out_backward(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                      const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, const View& grad_out,
                      std::uintptr_t weights, const std::array<std::uintptr_t, 3>& grads, int threads) {
    const auto op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    const auto to = [&](int i) { return reinterpret_cast<float*>(grads[static_cast<std::size_t>(i)]); };
    py::gil_scoped_release unlocked;
    invert_fast::fan_out_backward(op, heads_view(grad_out), reinterpret_cast<const float*>(weights), to(0), to(1),
                                  to(2), threads);
}

void draft_attention(const std::array<View, 5>& views, std::int64_t lengths, std::int64_t slots,
                     const std::array<std::int64_t, 6>& sizes, std::int64_t window, float scale, std::uintptr_t out,
                     int threads) {
    const auto op = pack_fan_out(views, lengths, slots, sizes, window, scale);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::draft_attention(op, reinterpret_cast<float*>(out), threads);
}

void pack_matrix(std::uintptr_t matrix, std::int64_t stride, std::int64_t column_stride, std::int64_t width,
                 std::int64_t columns, std::uintptr_t packed) {
    invert_fast::require_non_negative("width", width);
    invert_fast::require_non_negative("columns", columns);
    py::gil_scoped_release unlocked;
    invert_fast::pack_matrix(reinterpret_cast<const float*>(matrix), stride, column_stride, width, columns,
                             reinterpret_cast<float*>(packed));
}

void product(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, std::uintptr_t out, std::int64_t rows,
             std::int64_t width, std::int64_t columns, std::int64_t x_stride, std::int64_t out_stride, int threads) {
    invert_fast::require_non_negative("rows", rows);
    invert_fast::require_non_negative("width", width);
    invert_fast::require_non_negative("columns", columns);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::product({reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(packed),
                          reinterpret_cast<const float*>(bias), reinterpret_cast<float*>(out), rows, width, columns,
                          x_stride, out_stride},
                         threads);
}

// Rows, width and stride of a row's x.
using Size = std::array<std::int64_t, 3>;

invert_fast::Product pack_scores(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, const Size& size,
                                 std::int64_t columns) {
    invert_fast::require_non_negative("rows", size[0]);
    invert_fast::require_non_negative("width", size[1]);
    invert_fast::require_non_negative("columns", columns);
    return {reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(packed),
            reinterpret_cast<const float*>(bias), nullptr, size[0], size[1], columns, size[2], 0};
}

void best_two(std::uintptr_t x, std::uintptr_t packed, std::uintptr_t bias, std::uintptr_t ids, std::uintptr_t leads,
              const Size& size, std::int64_t columns, int threads) {
    const auto op = pack_scores(x, packed, bias, size, columns);
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::best_two(op, reinterpret_cast<std::int64_t*>(ids), reinterpret_cast<float*>(leads), threads);
}

void best_two_by_sketch(const std::array<std::uintptr_t, 3>& sketch, const Size& sketch_size,
                        const std::array<std::uintptr_t, 3>& rows, const Size& size, std::uintptr_t ids,
                        std::uintptr_t leads, std::int64_t columns, int threads) {
    const auto low = pack_scores(sketch[0], sketch[1], sketch[2], sketch_size, columns);
    const auto op = pack_scores(rows[0], rows[1], rows[2], size, columns);
    if (low.rows != op.rows) throw std::invalid_argument("sketch and x differ in rows");
    invert_fast::require_non_negative("threads", threads);
    py::gil_scoped_release unlocked;
    invert_fast::best_two_by_sketch(low, {op.x, op.packed, op.bias, op.width, op.x_stride},
                                    reinterpret_cast<std::int64_t*>(ids), reinterpret_cast<float*>(leads), threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU ops of invert_fast. Tensors are passed as data_ptr() integers, strides in elements.";
    m.def("residuals", &residuals, "predictions_ptr"_a, "targets_ptr"_a, "out_ptr"_a, "B"_a, "C"_a, "D"_a,
          "pred_stride_b"_a, "pred_stride_c"_a, "target_stride_b"_a, "pred_is_bf16"_a, "target_is_bf16"_a,
          "threads"_a = 0,
          "out[b, c] = ||predictions[b, c] - targets[b]|| / max(||targets[b]||, 1e-30); predictions [B, C, D] and "
          "targets [B, D] are fp32 or bf16, out [B, C] is contiguous fp32. threads=0 uses every core.");
    m.def("nearest_tokens", &nearest_tokens, "queries_ptr"_a, "table_ptr"_a, "banned_ptr"_a, "distances_ptr"_a,
          "ids_ptr"_a, "B"_a, "V"_a, "D"_a, "count"_a, "query_stride"_a, "table_stride"_a, "banned_stride"_a,
          "metric"_a, "table_is_bf16"_a, "threads"_a = 0,
          "The count rows of table [V, D] (fp32 or bf16) nearest to each of queries [B, D] (fp32), ties to the lower "
          "id; banned [B, V] bytes or 0. metric: 0 l1, 1 l2, 2 cosine, 3 dot. Writes distances (fp32) and ids (int64) "
          "[B, count], which end in +inf and -1 where fewer rows are left.");
    m.def("adam_step", &adam_step, "proxy_ptr"_a, "grad_ptr"_a, "mean_ptr"_a, "square_ptr"_a, "steps_ptr"_a,
          "active_ptr"_a, "B"_a, "D"_a, "proxy_stride"_a, "grad_stride"_a, "mean_stride"_a, "square_stride"_a, "lr"_a,
          "total_steps"_a, "clip"_a, "weight_decay"_a, "beta1"_a, "beta2"_a, "eps"_a, "threads"_a = 0,
          "One clipped, scheduled Adam step of every active lane, in place; all tables fp32 [B, D], steps [B] int64, "
          "active [B] bytes, clip=inf does not clip.");
    m.def("seconds_of_l1", &invert_fast::seconds_of_l1, "count"_a, "threads"_a = 1,
          py::call_guard<py::gil_scoped_release>(),
          "Seconds that threads take to add count absolute differences each in registers: the ceiling of L1.");
    m.def("fan_out_forward", &fan_out_forward, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "out_ptr"_a, "weights_ptr"_a, "threads"_a = 0,
          "Attention of N tokens a lane against its prefix and itself, see csrc/fan_out.h; all fp32. views: query, key, "
          "value, prefix key and prefix value as (pointer, strides of batch, head, token); sizes: B, Hq, Hkv, N, d and "
          "the longest prefix; window 0: all of it; null pointers for no lengths and no slots.");
    m.def("fan_out_backward", &fan_out_backward, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "grad_out"_a, "weights_ptr"_a, "grad_ptrs"_a, "threads"_a = 0,
          "Gradients by query, key and value (grad_ptrs) from that of the output and the weights of the forward pass.");
    m.def("gelu", &gelu, "x_ptr"_a, "out_ptr"_a, "count"_a, "threads"_a = 0, "GELU in its tanh form of count floats.");
    m.def("gelu_backward", &gelu_backward, "grad_ptr"_a, "x_ptr"_a, "out_ptr"_a, "count"_a, "threads"_a = 0,
          "Its gradient by x, from x and the gradient by the output.");
    m.def("tiles_are_widest", &invert_fast::tiles_are_widest,
          "Whether product and draft_attention use the widest vectors of isa(): elsewhere a BLAS is the faster.");
    m.def("draft_attention", &draft_attention, "views"_a, "lengths_ptr"_a, "slots_ptr"_a, "sizes"_a, "window"_a,
          "scale"_a, "out_ptr"_a, "threads"_a = 0,
          "Attention of N tokens in a row after each lane's prefix, see csrc/draft.h; arguments as of fan_out_forward.");
    m.def("packed_size", &invert_fast::packed_size, "width"_a, "columns"_a,
          "Floats that the packed form of a matrix [width, columns] takes.");
    m.def("pack_matrix", &pack_matrix, "matrix_ptr"_a, "stride"_a, "column_stride"_a, "width"_a, "columns"_a,
          "packed_ptr"_a, "Pack a matrix [width, columns] fp32 for product; packed: 64-byte aligned.");
    m.def("product", &product, "x_ptr"_a, "packed_ptr"_a, "bias_ptr"_a, "out_ptr"_a, "rows"_a, "width"_a, "columns"_a,
          "x_stride"_a, "out_stride"_a, "threads"_a = 0,
          "x [rows, width] times a packed matrix, plus bias [columns] (or 0), to out [rows, columns]; all fp32.");
    m.def("best_two", &best_two, "x_ptr"_a, "packed_ptr"_a, "bias_ptr"_a, "ids_ptr"_a, "leads_ptr"_a, "size"_a,
          "columns"_a, "threads"_a = 0,
          "Of each row of the same product the column of the largest element (int64) and its lead over the second. "
          "size: rows, width and stride of x.");
    m.def("best_two_by_sketch", &best_two_by_sketch, "sketch"_a, "sketch_size"_a, "rows"_a, "size"_a, "ids_ptr"_a,
          "leads_ptr"_a, "columns"_a, "threads"_a = 0,
          "The same among the best of every 64th column in a narrower product. sketch: pointers of x, packed and "
          "bias; rows: of x, the matrix [columns, width] and bias.");
    m.def("share_team", [](std::uintptr_t team) { invert_fast::shared_team = reinterpret_cast<invert_fast::Team>(team); },
          "team"_a, "The address of GOMP_parallel in the OpenMP runtime whose threads all ops are to use; 0: their own.");
    use_isa("");
    m.def("use_isa", &use_isa, "name"_a,
          "Let all ops use one instruction set of isas(); \"\": the widest. Not while an op runs.");
    m.def("isa", [] { return kIsas[static_cast<std::size_t>(invert_fast::isa_in_use)]; }, "The one in use.");
    m.def("isas", [] { return first_isas(usable_isas()); }, "Those of this build and machine, from narrow to wide.");
    m.def("build_info", &build_info,
          "version, compiler, sanitized, and the instruction sets compiled in.");
}
