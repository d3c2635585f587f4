// Drawing a token from each row of logits by the rule of runtime/sampler.h, to the same token: what
// is added up are integers (ops/sampling.h), so that threads may do it in any order.
//
// A row is shared by the blocks of a cluster (by one block where there are none), each with a run
// of its tokens, and read two to five times: the largest; where top-k or top-p cut, a histogram of
// 1/64 in log-probability and the tokens of the bins that they cut; the masses of what is left.
// What the blocks find they write into each other's shared memory. Bound: about 40 instructions a
// token for its mass.
#include <cooperative_groups.h>

#include <cfloat>

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_ops_table.h"
#include "ops/sampling.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMostBlocks = 8;  // of a row
// Tokens of one bin that can be put in order; the host draws where there are more.
constexpr int kMaxBorder = 1024;
// A model's likely tokens are few, and the bins of the others are seldom wanted.
constexpr int kLikelyBins = 512;
constexpr int kBinsOfThread = kSamplingBins / kThreads;
// Tokens that a warp adds up at a time for the draw.
constexpr int kPiece = 512, kMaxPieces = 128;
static_assert(kPiece * kMaxPieces * kWarps >= kMaxSampledVocab);

// Of tokens, the more probable first and of equals the lower: everything up to this one is kept.
struct Last {
  float scaled;
  int32_t token;
};
__device__ __forceinline__ bool comes_before(float scaled, int token, const Last& other) {
  return scaled > other.scaled || (scaled == other.scaled && token < other.token);
}

// Of tokens that may be drawn.
struct Sums {
  uint64_t mass = 0;
  int32_t size = 0;
};

struct Border {
  uint64_t masses[kMaxBorder];
  Last tokens[kMaxBorder];
};

struct Shared {
  // This block's tokens by bin, then those of all blocks.
  uint64_t masses[kSamplingBins];
  int32_t sizes[kSamplingBins];
  Border border;  // of this block, in no order
  union {
    Border all;  // of all blocks
    uint64_t pieces[kWarps][kMaxPieces];
  };
  uint64_t warp_mass[kWarps];
  int32_t warp_size[kWarps];
  Last warp_best[kWarps];
  // Written by each block of the row.
  Last best[kMostBlocks];
  Sums sums[2][kMostBlocks];
  int32_t border_sizes[2][kMostBlocks];
  uint64_t found_mass;
  int32_t found, found_size, border_size;
  Last last;
};

// The blocks that share a row.
struct Team {
  int rank = 0, blocks = 1;

  __device__ Team() {
#if __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    rank = static_cast<int>(cluster.block_rank());
    blocks = static_cast<int>(cluster.num_blocks());
#endif
  }
  __device__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }
  // The same place in another block's shared memory.
  template <typename T>
  __device__ T* in_block(T* place, int other) const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) return cooperative_groups::this_cluster().map_shared_rank(place, other);
#endif
    return place;
  }
  // Tells every block this one's value; read after sync().
  template <typename T>
  __device__ void tell(T (&values)[kMostBlocks], const T& value) const {
    if (static_cast<int>(threadIdx.x) < blocks) in_block(values, threadIdx.x)[rank] = value;
  }
};

// A row as the request sees it, and the run of it that this block has: what is not allowed and what
// is not a number counts as −∞.
struct Row {
  const float* logits;
  const uint32_t* allowed;
  int vocab, begin, end;
  float largest, inverse;

  __device__ float logit(int token) const {
    float value = logits[token];
    if (value != value) value = -INFINITY;
    if (allowed != nullptr && (allowed[token / 32] >> (token % 32) & 1) == 0) value = -INFINITY;
    return value;
  }
  __device__ float scaled(int token) const { return (logit(token) - largest) * inverse; }
  // The run that a warp of this block has.
  __device__ int run() const { return (end - begin + 32 * kWarps - 1) / (32 * kWarps) * 32; }
  // Calls f(token) for every token of the block.
  template <typename F>
  __device__ __forceinline__ void for_tokens(F f) const {
    const int first = begin + static_cast<int>(threadIdx.x) / 32 * run();
    const int last = min(first + run(), end);
#pragma unroll 8
    for (int token = first + threadIdx.x % 32; token < last; token += 32) f(token);
  }
};

// Sums before each lane.
template <typename T>
__device__ __forceinline__ T warp_prefix(T value) {
  T sum = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (static_cast<int>(threadIdx.x) % 32 >= offset) sum += other;
  }
  return sum - value;
}

// Of all threads of the block, in every thread.
__device__ __forceinline__ Sums block_sums(Shared& shared, Sums sums) {
  sums = {warp_reduce(sums.mass, Add{}), warp_reduce(sums.size, Add{})};
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    shared.warp_mass[threadIdx.x / 32] = sums.mass;
    shared.warp_size[threadIdx.x / 32] = sums.size;
  }
  __syncthreads();
  sums = {};
  for (int i = 0; i < kWarps; ++i) {
    sums.mass += shared.warp_mass[i];
    sums.size += shared.warp_size[i];
  }
  return sums;
}
// Of all blocks of the row; `slot` is used once a row.
__device__ __forceinline__ Sums row_sums(Shared& shared, const Team& team, int slot, Sums sums) {
  team.tell(shared.sums[slot], block_sums(shared, sums));
  team.sync();
  sums = {};
  for (int block = 0; block < team.blocks; ++block) {
    sums.mass += shared.sums[slot][block].mass;
    sums.size += shared.sums[slot][block].size;
  }
  return sums;
}

// Finds the first bin at which `reached(mass, size)`, of all bins up to it, is true; what lies
// before it is left in found_mass and found_size. There is one.
template <typename Reached>
__device__ __forceinline__ void find_bin(Shared& shared, Reached reached) {
  Sums own;
  const int first = threadIdx.x * kBinsOfThread, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    own.mass += shared.masses[first + i];
    own.size += shared.sizes[first + i];
  }
  Sums before{warp_prefix(own.mass), warp_prefix(own.size)};
  __syncthreads();
  if (lane == 31) {
    shared.warp_mass[warp] = before.mass + own.mass;
    shared.warp_size[warp] = before.size + own.size;
  }
  __syncthreads();
  for (int i = 0; i < warp; ++i) {
    before.mass += shared.warp_mass[i];
    before.size += shared.warp_size[i];
  }
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    const Sums after{before.mass + shared.masses[first + i], before.size + shared.sizes[first + i]};
    if (reached(after.mass, after.size) && !(first + i > 0 && reached(before.mass, before.size))) {
      shared.found = first + i;
      shared.found_mass = before.mass;
      shared.found_size = before.size;
    }
    before = after;
  }
  __syncthreads();
}

// The tokens of bin `found` up to `last` of all blocks, in no order; their number, or −1 where
// there is no room for them. `turn`: 0 the first time, then 1.
__device__ __forceinline__ int take_border(const Row& row, Shared& shared, const Team& team,
                                           int turn, const Last& last) {
  if (threadIdx.x == 0) shared.border_size = 0;
  __syncthreads();
  const int bin = shared.found;
  row.for_tokens([&](int token) {
    const float scaled = row.scaled(token);
    if (sampling_bin(scaled) != bin || comes_before(last.scaled, last.token, {scaled, token}))
      return;
    const uint64_t mass = sampling_mass(exp_of_nonpositive(scaled));
    if (mass == 0) return;
    const int at = atomicAdd(&shared.border_size, 1);
    if (at >= kMaxBorder) return;
    shared.border.tokens[at] = {scaled, token};
    shared.border.masses[at] = mass;
  });
  __syncthreads();
  team.tell(shared.border_sizes[turn], shared.border_size);
  team.sync();
  int size = 0;
  for (int block = 0; block < team.blocks; ++block) size += shared.border_sizes[turn][block];
  if (size > kMaxBorder) return -1;
  int to = 0;
  for (int block = 0; block < team.blocks; ++block) {
    const Border* border = team.in_block(&shared.border, block);
    const int count = shared.border_sizes[turn][block];
    for (int i = threadIdx.x; i < count; i += kThreads) {
      shared.all.tokens[to + i] = border->tokens[i];
      shared.all.masses[to + i] = border->masses[i];
    }
    to += count;
  }
  // Nobody takes another border before all have read this one.
  team.sync();
  return size;
}

// Calls f(i, token i's place in order, the mass before it) for every token of the border.
template <typename F>
__device__ __forceinline__ void rank_border(Shared& shared, int size, F f) {
  for (int i = threadIdx.x; i < size; i += kThreads) {
    const Last mine = shared.all.tokens[i];
    int place = 0;
    uint64_t before = 0;
    for (int j = 0; j < size; ++j)
      if (comes_before(shared.all.tokens[j].scaled, shared.all.tokens[j].token, mine)) {
        ++place;
        before += shared.all.masses[j];
      }
    f(i, place, before);
  }
  __syncthreads();
}

// Adds the block's tokens to the bins from `first` on and before `end`, then those of all blocks;
// gives the block's sums over all bins.
__device__ __forceinline__ Sums fill_bins(const Row& row, Shared& shared, const Team& team,
                                          int first, int end) {
  Sums sums;
  row.for_tokens([&](int token) {
    const float scaled = row.scaled(token);
    const uint64_t mass = sampling_mass(exp_of_nonpositive(scaled));
    if (mass == 0) return;
    sums.mass += mass;
    ++sums.size;
    const int bin = sampling_bin(scaled);
    if (bin < first || bin >= end) return;
    atomicAdd(reinterpret_cast<unsigned long long*>(&shared.masses[bin]), mass);
    atomicAdd(&shared.sizes[bin], 1);
  });
  if (team.blocks == 1) {
    __syncthreads();
    return sums;
  }
  team.sync();
  constexpr int kMostOfThread = kSamplingBins / kThreads;
  Sums of_all[kMostOfThread];
#pragma unroll
  for (int i = 0; i < kMostOfThread; ++i) {
    const int bin = first + static_cast<int>(threadIdx.x) + i * kThreads;
    if (bin >= end) break;
    for (int block = 0; block < team.blocks; ++block) {
      of_all[i].mass += *team.in_block(&shared.masses[bin], block);
      of_all[i].size += *team.in_block(&shared.sizes[bin], block);
    }
  }
  team.sync();
#pragma unroll
  for (int i = 0; i < kMostOfThread; ++i) {
    const int bin = first + static_cast<int>(threadIdx.x) + i * kThreads;
    if (bin >= end) break;
    shared.masses[bin] = of_all[i].mass;
    shared.sizes[bin] = of_all[i].size;
  }
  __syncthreads();
  return sums;
}

__device__ __forceinline__ Sums sums_of_bins(Shared& shared, int end) {
  Sums sums;
  for (int bin = threadIdx.x; bin < end; bin += kThreads) {
    sums.mass += shared.masses[bin];
    sums.size += shared.sizes[bin];
  }
  return block_sums(shared, sums);
}

// Where top-k and top-p end: the same in every block. False: undecided.
__device__ bool find_last(const Row& row, const SampleDraw& draw, Shared& shared, const Team& team,
                          Last& last) {
  for (int bin = threadIdx.x; bin < kSamplingBins; bin += kThreads) {
    shared.masses[bin] = 0;
    shared.sizes[bin] = 0;
  }
  __syncthreads();
  Sums all = row_sums(shared, team, 0, fill_bins(row, shared, team, 0, kLikelyBins));
  const Sums likely = sums_of_bins(shared, kLikelyBins);
  const bool cut_by_k = draw.top_k > 0 && draw.top_k < all.size;
  if (!cut_by_k && draw.top_p >= 1) return true;
  if (cut_by_k ? likely.size < draw.top_k : below_top_p(likely.mass, draw.top_p, all.mass))
    fill_bins(row, shared, team, kLikelyBins, kSamplingBins);

  if (cut_by_k) {
    const int k = static_cast<int>(draw.top_k);
    find_bin(shared, [&](uint64_t, int count) { return count >= k; });
    const int size = take_border(row, shared, team, 0, last);
    if (size < 0) return false;
    const int wanted = k - shared.found_size - 1;
    // Equals of the k-th stay.
    rank_border(shared, size, [&](int i, int place, uint64_t) {
      if (place == wanted) shared.last = {shared.all.tokens[i].scaled, row.vocab};
    });
    last = shared.last;
    if (draw.top_p < 1) {
      const int bin = shared.found;
      __syncthreads();
      for (int i = bin + static_cast<int>(threadIdx.x); i < kSamplingBins; i += kThreads) {
        shared.masses[i] = 0;
        shared.sizes[i] = 0;
      }
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kThreads)
        if (shared.all.tokens[i].scaled >= last.scaled)
          atomicAdd(reinterpret_cast<unsigned long long*>(&shared.masses[bin]),
                    shared.all.masses[i]);
      __syncthreads();
      all = sums_of_bins(shared, kSamplingBins);
    }
  }
  if (draw.top_p < 1) {
    const auto wants_more = [&](uint64_t mass) { return below_top_p(mass, draw.top_p, all.mass); };
    find_bin(shared, [&](uint64_t mass, int) { return !wants_more(mass); });
    const int size = take_border(row, shared, team, 1, last);
    if (size < 0) return false;
    const uint64_t before_bin = shared.found_mass;
    // The first token with which there is enough.
    rank_border(shared, size, [&](int i, int place, uint64_t before) {
      const uint64_t with = before_bin + before + shared.all.masses[i];
      if (!wants_more(with) && (place == 0 || wants_more(before_bin + before)))
        shared.last = shared.all.tokens[i];
    });
    last = shared.last;
  }
  return true;
}

// The drawn token, in the block that has it; −1 in the others.
__device__ int32_t draw_token(const Row& row, const SampleDraw& draw, Shared& shared,
                              const Team& team, const Last& last) {
  const auto mass_of = [&](int token, int end) -> uint64_t {
    if (token >= end) return 0;
    const float scaled = row.scaled(token);
    if (comes_before(last.scaled, last.token, {scaled, token})) return 0;
    const float weight = exp_of_nonpositive(scaled);
    return weight >= draw.min_p ? sampling_mass(weight) : 0;
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int begin = row.begin + warp * row.run(), end = min(begin + row.run(), row.end);
  uint64_t* pieces = shared.pieces[warp];
  uint64_t mass = 0;
  __syncthreads();
  if (threadIdx.x == 0) shared.found = -1;
  for (int first = begin, piece = 0; first < end; first += kPiece, ++piece) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPiece / 32; ++i) sum += mass_of(first + 32 * i + lane, end);
    sum = warp_reduce(sum, Add{});
    if (lane == 0) pieces[piece] = sum;
    mass += sum;
  }
  const Sums all = row_sums(shared, team, 1, {.mass = lane == 0 ? mass : 0});
  const uint64_t target = __umul64hi(draw.random, all.mass);
  uint64_t before = 0;
  for (int block = 0; block < team.rank; ++block) before += shared.sums[1][block].mass;
  for (int i = 0; i < warp; ++i) before += shared.warp_mass[i];
  // The warp in whose run the drawn token lies finds it.
  if (target >= before && target < before + mass) {
    int piece = 0;
    for (; before + pieces[piece] <= target; ++piece) before += pieces[piece];
    uint64_t own[kPiece / 32];
#pragma unroll
    for (int i = 0; i < kPiece / 32; ++i)
      own[i] = mass_of(begin + piece * kPiece + 32 * i + lane, end);
    bool found = false;
#pragma unroll
    for (int i = 0; i < kPiece / 32; ++i) {
      const uint64_t sum = before + warp_prefix(own[i]) + own[i];
      const uint32_t reached = __ballot_sync(0xffffffffu, sum > target);
      if (reached != 0 && !found && lane == 0)
        shared.found = begin + piece * kPiece + 32 * i + __ffs(static_cast<int>(reached)) - 1;
      found = found || reached != 0;
      before = __shfl_sync(0xffffffffu, sum, 31);
    }
  }
  __syncthreads();
  return shared.found;
}

__device__ Last largest_logit(const Row& row, Shared& shared, const Team& team) {
  Last best{-INFINITY, row.vocab};
  row.for_tokens([&](int token) {
    const float value = row.logit(token);
    if (value > best.scaled) best = {value, token};
  });
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Last other{__shfl_xor_sync(0xffffffffu, best.scaled, offset),
                     __shfl_xor_sync(0xffffffffu, best.token, offset)};
    if (comes_before(other.scaled, other.token, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) shared.warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  for (const Last& other : shared.warp_best)
    if (comes_before(other.scaled, other.token, best)) best = other;
  team.tell(shared.best, best);
  team.sync();
  for (int block = 0; block < team.blocks; ++block) {
    const Last& other = shared.best[block];
    if (comes_before(other.scaled, other.token, best)) best = other;
  }
  return best;
}

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  let_next_kernel_launch();
  const Team team;
  // Nobody writes into a block that has not begun.
  team.sync();
  wait_for_previous_kernel();
  const int64_t at = blockIdx.x / team.blocks;
  const SampleDraw draw = args.draws[at];
  float* logits = args.logits + at * args.vocab;
  const int vocab = static_cast<int>(args.vocab);
  const int part = (vocab + 32 * team.blocks - 1) / (32 * team.blocks) * 32;
  Row row{logits,
          draw.allowed < 0 ? nullptr : args.allowed + draw.allowed * ((args.vocab + 63) / 64) * 2,
          vocab,
          min(vocab, part * team.rank),
          min(vocab, part * (team.rank + 1)),
          0,
          draw.inverse_temperature};
  // Each block has the changes of its own tokens.
  const auto for_changes = [&](auto f) {
    for (int i = threadIdx.x; i < draw.change_count; i += kThreads) {
      const LogitChange& change = args.changes[draw.first_change + i];
      if (change.token >= row.begin && change.token < row.end)
        f(change, args.unchanged[draw.first_change + i]);
    }
  };
  for_changes([&](const LogitChange& change, float& unchanged) {
    unchanged = logits[change.token];
    logits[change.token] = change(unchanged);
  });
  __syncthreads();

  const Last best = largest_logit(row, shared, team);
  int32_t token = team.rank == 0 ? best.token : -1;
  if (best.scaled == -INFINITY) {
    token = kNoToken;
    if (team.rank == 0 && threadIdx.x == 0) args.tokens[at] = token;
  } else if (draw.inverse_temperature > 0) {
    row.largest = best.scaled;
    Last last{-INFINITY, vocab};
    const bool cut = draw.top_k > 0 || draw.top_p < 1;
    if (best.scaled == INFINITY || (cut && !find_last(row, draw, shared, team, last))) {
      for_changes(
          [&](const LogitChange& change, float& unchanged) { logits[change.token] = unchanged; });
      if (team.rank == 0 && threadIdx.x == 0) args.tokens[at] = kUndecidedToken;
      token = -1;
    } else {
      token = draw_token(row, draw, shared, team, last);
    }
  }
  if (token >= 0 && threadIdx.x == 0) args.tokens[at] = token;
  // Nobody leaves while others read what it has.
  team.sync();
}

}  // namespace

void sample(const SampleArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(Shared))),
        "asking for shared memory");
  const int blocks = kernels_wait() ? kMostBlocks : 1;
  launch_clusters(sample_kernel, dim3(static_cast<unsigned>(args.rows * blocks)), blocks,
                  dim3(kThreads), sizeof(Shared), stream, args);
}

}  // namespace whit::cuda
