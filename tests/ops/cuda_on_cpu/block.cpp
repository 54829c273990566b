#include "block.h"

#include <link.h>

#include <string>

#include "cuda_runtime.h"

namespace cuda_on_cpu {
namespace {

Block* running = nullptr;

// Fills the thread_local variables of this library, which are the __shared__ ones, with NaN.
void poison_shared_memory() {
    static thread_local char anchor;
    const auto fill = [](dl_phdr_info* library, std::size_t, void* own) {
        for (int i = 0; i < library->dlpi_phnum; ++i) {
            auto* begin = static_cast<char*>(library->dlpi_tls_data);
            const std::size_t size = library->dlpi_phdr[i].p_memsz;
            if (library->dlpi_phdr[i].p_type != PT_TLS || own < begin || own >= begin + size) continue;
            std::memset(begin, 0xff, size);
            return 1;
        }
        return 0;
    };
    if (!dl_iterate_phdr(fill, &anchor)) throw std::logic_error("shared memory was not found");
}

void make(const Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.size - copy.zeros);
    std::memset(static_cast<char*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
}

}  // namespace

Block& block() { return *running; }

Block::Block(unsigned threads, std::function<void()> kernel)
    : kernel_(std::move(kernel)),
      fibers_(pool()),
      threads_(threads),
      warps_((threads + kLanes - 1) / kLanes),
      barrier_(threads) {
    if (threads % kLanes) throw std::logic_error("a block of a broken warp");
    while (fibers_.size() < threads) {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack.reset(new char[kStackBytes]);
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get();
        fiber->context.uc_stack.ss_size = kStackBytes;
        makecontext(&fiber->context, &Block::enter, 0);
        fibers_.push_back(std::move(fiber));
    }
    for (auto& fiber : fibers_) fiber->done = false;
}

std::vector<std::unique_ptr<Block::Fiber>>& Block::pool() {
    static std::vector<std::unique_ptr<Fiber>> fibers;
    return fibers;
}

// A fiber runs the kernel of one block after another.
void Block::enter() {
    for (;;) {
        running->run_kernel();
        if (!_setjmp(running->fiber().place)) _longjmp(running->scheduler_, 1);
    }
}

void Block::run_kernel() {
    try {
        kernel_();
        bool left = !fiber().open.empty();
        for (const auto& group : fiber().groups) left |= !group.empty();
        if (left) throw std::logic_error("a copy that is never waited for");
        fiber().groups.clear();
    } catch (...) {
        error_ = std::current_exception();
    }
    fiber().done = true;
}

bool Block::resume(unsigned thread) {
    Fiber& fiber = *fibers_[thread];
    if (fiber.done || (fiber.waits_for && fiber.waits_for->generation() == fiber.generation)) return false;
    fiber.waits_for = nullptr;
    current_ = thread;
    threadIdx.x = thread;
    if (!_setjmp(scheduler_)) {
        if (fiber.started) _longjmp(fiber.place, 1);
        fiber.started = true;
        setcontext(&fiber.context);
    }
    if (error_) fail(error_);
    return true;
}

void Block::run() {
    running = this;
    poison_shared_memory();
    for (unsigned i = 0; i < threads_;) {  // always the first that can run: its warp gets ahead of all others
        i = resume(order.falling ? threads_ - 1 - i : i) ? 0 : i + 1;
    }
    for (unsigned i = 0; i < threads_; ++i) {
        if (fibers_[i]->done) continue;
        const std::string message = "thread " + std::to_string(i) + " waits for one that never comes";
        fail(std::make_exception_ptr(std::logic_error(message)));
    }
}

void Block::fail(std::exception_ptr error) {
    fibers_.clear();  // they stand where they stand, in the middle of a kernel
    std::rethrow_exception(error);
}

void Block::wait(Barrier& barrier) {
    Fiber& fiber = this->fiber();
    fiber.waits_for = &barrier;
    fiber.generation = barrier.generation();
    barrier.arrive();
    if (!_setjmp(fiber.place)) _longjmp(scheduler_, 1);  // swapcontext would ask the kernel, each time
}

void Block::copy_later(const Copy& copy) {
    const auto bits = reinterpret_cast<std::uintptr_t>(copy.to) | reinterpret_cast<std::uintptr_t>(copy.from);
    const bool known = copy.size == 4 || copy.size == 8 || copy.size == 16;
    if (!known || copy.zeros > copy.size || bits % copy.size) throw std::logic_error("a copy that no GPU makes");
    if (order.copy_at_once) make(copy);
    fiber().open.push_back(copy);
}

void Block::commit_copies() {
    Fiber& fiber = this->fiber();
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

void Block::finish_copies(std::size_t prior) {
    auto& groups = fiber().groups;
    for (; groups.size() > prior; groups.pop_front()) {
        if (order.copy_at_once) continue;
        for (const Copy& copy : groups.front()) make(copy);
    }
}

}  // namespace cuda_on_cpu
