// A block of CUDA threads on one CPU thread: each is a fiber that runs until it must wait for others.
//
// A thread gets as far ahead of all others as the code lets it, in rising or in falling order, so a barrier that is
// missing shows. Shared memory holds NaN when a block starts. An asynchronous copy is made when it is waited for, or at
// once. Barriers that not all threads reach, shuffles that not all lanes of a warp make alike, copies that are misaligned
// or never waited for are errors.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

namespace cuda_on_cpu {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 64 << 10;

// What a GPU leaves open.
struct Order {
    bool falling = false;      // threads run from the last to the first
    bool copy_at_once = false;  // asynchronous copies are made when they are asked for
};
inline Order order;

struct Copy {
    void* to;
    const void* from;
    std::size_t size, zeros;
};

class Barrier {
   public:
    explicit Barrier(unsigned expected) : expected_(expected) {}
    unsigned generation() const { return generation_; }
    void arrive() {
        if (++arrived_ == expected_) arrived_ = 0, ++generation_;
    }

   private:
    unsigned expected_, arrived_ = 0, generation_ = 0;
};

class Block {
   public:
    Block(unsigned threads, std::function<void()> kernel);
    void run();

    void wait_for_block() { wait(barrier_); }
    void copy_later(const Copy& copy);
    void commit_copies();
    void finish_copies(std::size_t prior);

    template <class Value>
    Value exchange(unsigned mask, Value value, int lane_mask) {
        static_assert(sizeof(Value) <= sizeof(std::uint64_t));
        if (mask != 0xffffffffu) throw std::logic_error("a shuffle that not the whole warp makes");
        Warp& warp = warps_[current_ / kLanes];
        auto& slots = warp.slots[warp.barrier.generation() % 2];  // lanes may be one shuffle ahead, not two
        const unsigned lane = current_ % kLanes;
        slots[lane].lane_mask = lane_mask;
        std::memcpy(slots[lane].bytes, &value, sizeof value);
        wait(warp.barrier);
        const Slot& other = slots[lane ^ static_cast<unsigned>(lane_mask)];
        if (other.lane_mask != lane_mask) throw std::logic_error("lanes of a warp make different shuffles");
        Value received;
        std::memcpy(&received, other.bytes, sizeof received);
        return received;
    }

   private:
    struct Slot {
        int lane_mask;
        unsigned char bytes[8];
    };
    struct Warp {
        Barrier barrier{kLanes};
        Slot slots[2][kLanes];
    };
    struct Fiber {
        ucontext_t context;  // where it starts
        jmp_buf place;       // and goes on
        bool started = false, done = false;
        std::unique_ptr<char[]> stack;
        const Barrier* waits_for = nullptr;
        unsigned generation = 0;
        std::vector<Copy> open;                // not committed yet
        std::deque<std::vector<Copy>> groups;  // committed
    };

    static void enter();
    static std::vector<std::unique_ptr<Fiber>>& pool();
    Fiber& fiber() { return *fibers_[current_]; }
    void run_kernel();
    [[noreturn]] void fail(std::exception_ptr error);
    void wait(Barrier& barrier);
    bool resume(unsigned thread);

    std::function<void()> kernel_;
    std::vector<std::unique_ptr<Fiber>>& fibers_;  // of all blocks: to make one asks the kernel
    unsigned threads_;
    std::vector<Warp> warps_;
    Barrier barrier_;
    jmp_buf scheduler_;
    unsigned current_ = 0;
    std::exception_ptr error_;
};

Block& block();  // the one that runs

}  // namespace cuda_on_cpu
