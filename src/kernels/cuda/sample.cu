// Drawing a token from each row of logits by the rule of runtime/sampler.h, to the same token: what
// is added up are integers (ops/sampling.h), so that threads may do it in any order.
//
// One block a row. The row, half a megabyte at a vocabulary of 128 256, is read from the L2 two to
// four times: the largest; where top-k or top-p cut, a histogram of 1/64 in log-probability and the
// tokens of the bins they cut; the masses of what is left. Bound: one SM's reads of the L2, about
// 6 µs a time.
#include <cfloat>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_ops_table.h"
#include "ops/sampling.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
// Tokens of one bin that can be put in order; the host draws where there are more.
constexpr int kMaxBorder = 1024;
constexpr int kLikelyBins = 512;
// Tokens that a warp adds up at a time for the draw.
constexpr int kPiece = 512, kMaxPieces = kSamplingBins / kWarps;
static_assert(kPiece * kMaxPieces * kWarps >= kMaxSampledVocab);
constexpr int kBinsOfThread = kSamplingBins / kThreads;

// Of tokens, the more probable first and of equals the lower: everything up to this one is kept.
struct Last {
  float scaled;
  int32_t token;
};
__device__ __forceinline__ bool comes_before(float scaled, int token, const Last& other) {
  return scaled > other.scaled || (scaled == other.scaled && token < other.token);
}

struct Shared {
  uint64_t masses[kSamplingBins];
  int32_t sizes[kSamplingBins];
  uint64_t border_mass[kMaxBorder];
  Last border[kMaxBorder];
  uint64_t warp_mass[kWarps];
  int32_t warp_size[kWarps];
  uint64_t found_mass;
  int32_t found, found_size, border_size;
  Last last;
};

// A row as the request sees it: what is not allowed and what is not a number counts as −∞.
struct Row {
  const float* logits;
  const uint32_t* allowed;
  int vocab;
  float largest, inverse;

  __device__ float logit(int token) const {
    float value = logits[token];
    if (value != value) value = -INFINITY;
    if (allowed != nullptr && (allowed[token / 32] >> (token % 32) & 1) == 0) value = -INFINITY;
    return value;
  }
  __device__ float scaled(int token) const { return (logit(token) - largest) * inverse; }
};

// Calls f(token) for every token: a warp has a run of them, of which its lanes take one in turn.
template <typename F>
__device__ __forceinline__ void for_tokens(int vocab, F f) {
  const int run = (vocab + 32 * kWarps - 1) / (32 * kWarps) * 32;
  const int begin = threadIdx.x / 32 * run, end = min(begin + run, vocab);
#pragma unroll 8
  for (int token = begin + threadIdx.x % 32; token < end; token += 32) f(token);
}

template <typename T, typename Combine>
__device__ __forceinline__ T warp_total(T value, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

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

// Of tokens that may be drawn.
struct Sums {
  uint64_t mass = 0;
  int32_t size = 0;
};

// Of all threads, in every thread.
__device__ __forceinline__ Sums block_sums(Shared& shared, Sums sums) {
  const auto add = [](auto a, auto b) { return a + b; };
  sums = {warp_total(sums.mass, add), warp_total(sums.size, add)};
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    shared.warp_mass[threadIdx.x / 32] = sums.mass;
    shared.warp_size[threadIdx.x / 32] = sums.size;
  }
  __syncthreads();
  return {warp_total(shared.warp_mass[threadIdx.x % 32], add),
          warp_total(shared.warp_size[threadIdx.x % 32], add)};
}

// Finds the first bin at which `reached(mass, size)`, of all bins up to it, is true; what lies
// before it is left in found_mass and found_size. There is one.
template <typename Reached>
__device__ __forceinline__ void find_bin(Shared& shared, Reached reached) {
  uint64_t mass = 0;
  int32_t size = 0;
  const int first = threadIdx.x * kBinsOfThread, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    mass += shared.masses[first + i];
    size += shared.sizes[first + i];
  }
  uint64_t mass_before = warp_prefix(mass);
  int32_t size_before = warp_prefix(size);
  if (lane == 31) {
    shared.warp_mass[warp] = mass_before + mass;
    shared.warp_size[warp] = size_before + size;
  }
  __syncthreads();
  for (int i = 0; i < warp; ++i) {
    mass_before += shared.warp_mass[i];
    size_before += shared.warp_size[i];
  }
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    const uint64_t mass_after = mass_before + shared.masses[first + i];
    const int32_t size_after = size_before + shared.sizes[first + i];
    if (reached(mass_after, size_after) && !(first + i > 0 && reached(mass_before, size_before))) {
      shared.found = first + i;
      shared.found_mass = mass_before;
      shared.found_size = size_before;
    }
    mass_before = mass_after;
    size_before = size_after;
  }
  __syncthreads();
}

// The tokens of bin `found` up to `last`, in no order. Whether there is room for them.
__device__ __forceinline__ bool take_border(const Row& row, Shared& shared, const Last& last) {
  if (threadIdx.x == 0) shared.border_size = 0;
  __syncthreads();
  const int bin = shared.found;
  for_tokens(row.vocab, [&](int token) {
    const float scaled = row.scaled(token);
    if (sampling_bin(scaled) != bin || comes_before(last.scaled, last.token, {scaled, token}))
      return;
    const uint64_t mass = sampling_mass(exp_of_nonpositive(scaled));
    if (mass == 0) return;
    const int at = atomicAdd(&shared.border_size, 1);
    if (at >= kMaxBorder) return;
    shared.border[at] = {scaled, token};
    shared.border_mass[at] = mass;
  });
  __syncthreads();
  return shared.border_size <= kMaxBorder;
}

// Calls f(token's place in order, the mass before it) for this thread's token of the border.
template <typename F>
__device__ __forceinline__ void rank_border(Shared& shared, F f) {
  const int size = shared.border_size, at = threadIdx.x;
  if (at < size) {
    const Last mine = shared.border[at];
    int place = 0;
    uint64_t before = 0;
    for (int i = 0; i < size; ++i)
      if (comes_before(shared.border[i].scaled, shared.border[i].token, mine)) {
        ++place;
        before += shared.border_mass[i];
      }
    f(place, before);
  }
  __syncthreads();
}

// Adds a row's tokens to the bins from `first` on and before `end`; gives the sums of all of them.
__device__ Sums fill_bins(const Row& row, Shared& shared, int first, int end) {
  Sums sums;
  for_tokens(row.vocab, [&](int token) {
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
  return block_sums(shared, sums);
}

// Where top-k and top-p end. False: undecided.
__device__ bool find_last(const Row& row, const SampleDraw& draw, Shared& shared, Last& last) {
  for (int bin = threadIdx.x; bin < kSamplingBins; bin += kThreads) {
    shared.masses[bin] = 0;
    shared.sizes[bin] = 0;
  }
  __syncthreads();
  // A model's likely tokens are few, and the bins of the others are seldom wanted.
  Sums all = fill_bins(row, shared, 0, kLikelyBins);
  Sums likely;
  for (int bin = threadIdx.x; bin < kLikelyBins; bin += kThreads) {
    likely.mass += shared.masses[bin];
    likely.size += shared.sizes[bin];
  }
  likely = block_sums(shared, likely);
  const bool cut_by_k = draw.top_k > 0 && draw.top_k < all.size;
  if (cut_by_k ? likely.size < draw.top_k : below_top_p(likely.mass, draw.top_p, all.mass))
    fill_bins(row, shared, kLikelyBins, kSamplingBins);

  if (cut_by_k) {
    const int k = static_cast<int>(draw.top_k);
    find_bin(shared, [&](uint64_t, int count) { return count >= k; });
    if (!take_border(row, shared, last)) return false;
    const int wanted = k - shared.found_size - 1;
    // Equals of the k-th stay.
    rank_border(shared, [&](int place, uint64_t) {
      if (place == wanted) shared.last = {shared.border[threadIdx.x].scaled, row.vocab};
    });
    last = shared.last;
    if (draw.top_p < 1) {
      const int bin = shared.found;
      __syncthreads();
      for (int i = threadIdx.x; i < kSamplingBins; i += kThreads)
        if (i >= bin) {
          shared.masses[i] = 0;
          shared.sizes[i] = 0;
        }
      __syncthreads();
      if (threadIdx.x < shared.border_size && shared.border[threadIdx.x].scaled >= last.scaled)
        atomicAdd(reinterpret_cast<unsigned long long*>(&shared.masses[bin]),
                  shared.border_mass[threadIdx.x]);
      __syncthreads();
    }
  }
  if (draw.top_p < 1) {
    if (cut_by_k) {
      Sums kept;
      for (int bin = threadIdx.x; bin < kSamplingBins; bin += kThreads)
        kept.mass += shared.masses[bin];
      all = block_sums(shared, kept);
    }
    const uint64_t total = all.mass;
    const auto wants_more = [&](uint64_t mass) { return below_top_p(mass, draw.top_p, total); };
    find_bin(shared, [&](uint64_t mass, int) { return !wants_more(mass); });
    if (!take_border(row, shared, last)) return false;
    const uint64_t before_bin = shared.found_mass;
    // The first token with which there is enough.
    rank_border(shared, [&](int place, uint64_t before) {
      const uint64_t with = before_bin + before + shared.border_mass[threadIdx.x];
      if (!wants_more(with) && (place == 0 || wants_more(before_bin + before)))
        shared.last = shared.border[threadIdx.x];
    });
    last = shared.last;
  }
  return true;
}

// Of the run of tokens that a warp has, a piece at a time.
__device__ int32_t draw_token(const Row& row, const SampleDraw& draw, Shared& shared,
                              const Last& last) {
  const auto mass_of = [&](int token, int end) -> uint64_t {
    if (token >= end) return 0;
    const float scaled = row.scaled(token);
    if (comes_before(last.scaled, last.token, {scaled, token})) return 0;
    const float weight = exp_of_nonpositive(scaled);
    return weight >= draw.min_p ? sampling_mass(weight) : 0;
  };
  const auto add = [](uint64_t a, uint64_t b) { return a + b; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int run = (row.vocab + 32 * kWarps - 1) / (32 * kWarps) * 32;
  const int begin = warp * run, end = min(begin + run, row.vocab);
  uint64_t* pieces = shared.masses + warp * kMaxPieces;
  uint64_t mass = 0;
  __syncthreads();
  for (int first = begin, piece = 0; first < end; first += kPiece, ++piece) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPiece / 32; ++i) sum += mass_of(first + 32 * i + lane, end);
    sum = warp_total(sum, add);
    if (lane == 0) pieces[piece] = sum;
    mass += sum;
  }
  if (lane == 0) shared.warp_mass[warp] = mass;
  __syncthreads();
  const uint64_t mass_of_lane = shared.warp_mass[lane];
  const uint64_t target = __umul64hi(draw.random, warp_total(mass_of_lane, add));
  uint64_t before = __shfl_sync(0xffffffffu, warp_prefix(mass_of_lane), warp);
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

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const SampleDraw draw = args.draws[blockIdx.x];
  float* logits = args.logits + blockIdx.x * args.vocab;
  for (int i = threadIdx.x; i < draw.change_count; i += kThreads) {
    const LogitChange& change = args.changes[draw.first_change + i];
    const float value = logits[change.token];
    args.unchanged[draw.first_change + i] = value;
    logits[change.token] = change(value);
  }
  __syncthreads();

  Row row{logits,
          draw.allowed < 0 ? nullptr : args.allowed + draw.allowed * ((args.vocab + 63) / 64) * 2,
          static_cast<int>(args.vocab), 0, draw.inverse_temperature};
  Last best{-INFINITY, row.vocab};
  for_tokens(row.vocab, [&](int token) {
    const float value = row.logit(token);
    if (value > best.scaled) best = {value, token};
  });
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Last other{__shfl_xor_sync(0xffffffffu, best.scaled, offset),
                     __shfl_xor_sync(0xffffffffu, best.token, offset)};
    if (comes_before(other.scaled, other.token, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) shared.border[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i)
    if (comes_before(shared.border[i].scaled, shared.border[i].token, best))
      best = shared.border[i];
  __syncthreads();

  int32_t token = best.token;
  if (best.scaled == -INFINITY) {
    token = kNoToken;
  } else if (draw.inverse_temperature > 0) {
    row.largest = best.scaled;
    Last last{-INFINITY, row.vocab};
    const bool cut = draw.top_k > 0 || draw.top_p < 1;
    if (best.scaled == INFINITY || (cut && !find_last(row, draw, shared, last))) {
      token = kUndecidedToken;
      for (int i = threadIdx.x; i < draw.change_count; i += kThreads)
        logits[args.changes[draw.first_change + i].token] = args.unchanged[draw.first_change + i];
    } else {
      token = draw_token(row, draw, shared, last);
    }
  }
  if (threadIdx.x == 0) args.tokens[blockIdx.x] = token;
}

}  // namespace

void sample(const SampleArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  static_assert(sizeof(Shared) <= 96 * 1024);
  check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(Shared))),
        "asking for shared memory");
  launch_dependent(sample_kernel, dim3(static_cast<unsigned>(args.rows)), dim3(kThreads),
                   sizeof(Shared), stream, args);
}

}  // namespace whit::cuda
