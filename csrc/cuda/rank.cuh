// What a pair of elements adds to the distance of two rows, and a distance and an id as one number.
#pragma once
#include "kernel.cuh"
#include "nearest.cuh"

namespace invert_fast {

struct L1 {
    static constexpr bool kLengths = false;  // whether the distance needs the lengths of query and row
    __device__ static void add(float& total, float q, float e) { total += fabsf(q - e); }
    __device__ static float distance(float total, float, float) { return total; }
};
struct L2 {
    static constexpr bool kLengths = false;
    __device__ static void add(float& total, float q, float e) { total += (q - e) * (q - e); }
    __device__ static float distance(float total, float, float) { return total; }
};
struct Dot {
    static constexpr bool kLengths = false;
    __device__ static void add(float& total, float q, float e) { total += q * e; }
    __device__ static float distance(float total, float, float) { return -total; }
};
struct Cosine : Dot {
    static constexpr bool kLengths = true;
    __device__ static float distance(float total, float query_length, float row_length) {
        return 1 - total / (query_length * row_length);
    }
};

// A zero vector has no direction and must not divide by zero.
__device__ inline float length(float squares) { return fmaxf(sqrtf(squares), 1e-12f); }

constexpr Rank kFarthest = 0x7fffffffffffffff;  // of no row
constexpr int kInfinity = 0x7f800000;           // the bits of +inf

// What is banned or not a number is infinitely far. The bits of a float sort like an integer once those of a negative
// one, but for its sign, are turned round.
__device__ inline Rank rank_of(float distance, bool banned, std::int64_t row) {
    int bits = banned || distance != distance ? kInfinity : __float_as_int(distance + 0.0f);  // -0 is 0
    bits ^= (bits >> 31) & 0x7fffffff;
    return static_cast<Rank>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(bits)) << 32 |
                             static_cast<std::uint32_t>(row));
}

__device__ inline Rank nearer(Rank a, Rank b) { return a < b ? a : b; }

// The least of each aligned group of `lanes` threads.
template <int lanes>
__device__ Rank nearest_of(Rank rank) {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        rank = nearer(rank, __shfl_xor_sync(kWholeWarp, rank, offset));
    }
    return rank;
}

__device__ inline bool is_banned(const Nearest& op, std::int64_t query, std::int64_t row) {
    return op.banned && op.banned[query * op.banned_stride + row];
}

}  // namespace invert_fast
