#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "base/checked.h"
#include "kernels/cuda/benchmark.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_dense.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_skinny.h"
#include "kernels/cuda/ptx.cuh"

namespace whit::cuda {
namespace {

__device__ uint32_t random_word(uint32_t index, uint32_t seed) {
  uint32_t x = index * 2654435761u + seed;
  for (int round = 0; round < 2; ++round) x ^= x << 13, x ^= x >> 17, x ^= x << 5;
  return x;
}
__global__ void fill(uint32_t* p, size_t words, uint32_t seed, uint32_t keep, uint32_t set) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step)
    p[i] = (random_word(static_cast<uint32_t>(i), seed) & keep) | set;
}
// Bytes of int8: of four random ones the mean, as bell-shaped as rows of codes are whose largest is
// 127 (deviation 37). Uniform ones would cost the tensor cores more power, and so clock.
__global__ void fill_int8(uint32_t* p, size_t words, uint32_t seed) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step) {
    uint32_t word = 0;
#pragma unroll
    for (uint32_t b = 0; b < 4; ++b) {
      const uint32_t x = random_word(static_cast<uint32_t>(4 * i + b), seed);
      const uint32_t sum = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
      word |= (static_cast<uint32_t>(static_cast<int>(sum) / 4 - 127) & 255) << (8 * b);
    }
    p[i] = word;
  }
}
// The scale words of every tile.
__global__ void fill_scales(uint8_t* weight, TileLayout layout, bool multiples, uint32_t zero,
                            uint32_t keep) {
  const int64_t tile = blockIdx.x;
  auto* words = reinterpret_cast<uint32_t*>(weight + tile * layout.tile_bytes + 4 * kUnitBytes);
  const uint32_t x = (static_cast<uint32_t>(tile) * blockDim.x + threadIdx.x) * 2654435761u >> 8;
  words[threadIdx.x] =
      (multiples ? 1 + (x & 7) : 0x2000u + (x & 0x3ff)) + ((zero + (x >> 12 & keep)) << 16);
}

// Reads bytes with 16-byte loads, eight in flight a thread.
__global__ void __launch_bounds__(512) bare_read(const uint8_t* p, size_t vectors, uint32_t* sink) {
  let_next_kernel_launch();
  wait_for_previous_kernel();
  uint32_t sum = 0;
  const size_t step = size_t{gridDim.x} * blockDim.x * 8;
  for (size_t i = size_t{blockIdx.x} * blockDim.x * 8 + threadIdx.x; i < vectors; i += step) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u)
      v[u] =
          i + u * 512 < vectors ? load_streaming(p + (i + u * 512) * 16) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int u = 0; u < 8; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

class Memory {
 public:
  ~Memory() { cudaFree(data_); }
  // At least so many bytes; what was there is lost where it grows.
  uint8_t* reserve(size_t bytes) {
    if (bytes > bytes_) {
      cudaFree(data_);
      data_ = nullptr;
      bytes_ = 0;
      check(cudaMalloc(&data_, bytes), "memory of the benchmark");
      bytes_ = bytes;
    }
    return static_cast<uint8_t*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Median µs of a call of a graph of `calls` calls, repeated until it is a millisecond long. After a
// pause and 15 ms of replays: so that neither what ran before nor a clock that sleeps counts, and
// power limits count little. An untimed replay before each timed one keeps launches out.
double median_us(cudaStream_t stream, int calls, const std::function<void(int)>& call) {
  call(0);  // what is made at first use
  check(cudaStreamSynchronize(stream), "first call");
  check(cudaGetLastError(), "first call");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  auto elapsed_ms = [&] {
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "calls");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    return ms;
  };
  check(cudaEventRecord(begin, stream), "event");
  for (int i = 0; i < calls; ++i) call(i);
  const float once = elapsed_ms();
  const int rounds = std::clamp(static_cast<int>(1 / once) + 1, 1, std::max(1, 400 / calls));
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < rounds * calls; ++i) call(i % calls);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "graph");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(15)) {
    check(cudaGraphLaunch(replay, stream), "replay");
    check(cudaStreamSynchronize(stream), "replay");
  }
  std::vector<double> times;
  for (int repeat = 0; repeat < 25; ++repeat) {
    check(cudaGraphLaunch(replay, stream), "replay");
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(replay, stream), "replay");
    times.push_back(elapsed_ms() * 1e3 / (rounds * calls));
  }
  check(cudaGraphExecDestroy(replay), "graph");
  check(cudaGraphDestroy(graph), "graph");
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

size_t bytes_of(const BenchmarkWeight& w) {
  return static_cast<size_t>(round_up(packed_bytes(w.format, w.n, w.k, w.group_size), 256));
}

bool has_groups(LinearFormat format) {
  return format == LinearFormat::kW4A8 || format == LinearFormat::kW4A16 ||
         format == LinearFormat::kW4A8TwoLevel || format == LinearFormat::kW4AFp8;
}

}  // namespace

class LinearBenchmark::Impl {
 public:
  Impl() {
    check(cudaGetDeviceProperties(&properties_, 0), "device");
    check(cudaStreamCreate(&stream_), "stream");
    fill<<<sms() * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(arena()), kArenaBytes / 4, 7,
                                         0xffffffffu, 0);
    check(cudaStreamSynchronize(stream_), "fill");
  }
  ~Impl() { cudaStreamDestroy(stream_); }

  BenchmarkLimits limits(bool peaks) {
    BenchmarkLimits limits{.device = properties_.name, .sms = sms()};
    limits.read_bytes_per_s = double(kArenaBytes) / bare_read_us(kArenaBytes) * 1e6;
    if (!peaks) return limits;
    const double operations = 2.0 * 8192 * 8192 * 8192;
    auto rate = [&](LinearFormat format) {
      return operations / run({.format = format, .n = 8192, .k = 8192}, 8192, false).us * 1e6;
    };
    limits.int8_operations_per_s = std::max(rate(LinearFormat::kW8A8), rate(LinearFormat::kFp8));
    limits.bf16_operations_per_s = rate(LinearFormat::kBf16);
    return limits;
  }

  BenchmarkResult run(const BenchmarkWeight& weight, int64_t m, bool streaming) {
    const size_t pitch = bytes_of(weight);
    // A weight that alone exceeds the L2 so far needs no copies.
    const int copies =
        make_copies(weight, 0, std::clamp(bytes_of(weight), kCopiesBytes, kArenaBytes));
    LinearArgs args = make_args(weight, m);
    BenchmarkResult result;
    result.us = median_us(stream_, std::max(2, copies), [&](int i) {
      args.weight.data = arena() + (i % copies) * pitch;
      if (streaming)
        run_skinny(args, {.sms = sms(), .capability = 10 * properties_.major + properties_.minor},
                   stream_);
      else
        runner_.run(args, stream_);
    });
    const auto bytes = double(packed_bytes(weight.format, weight.n, weight.k, weight.group_size));
    result.weight_bytes_per_s = bytes / result.us * 1e6;
    result.operations_per_s =
        2.0 * double(weight.n) * double(weight.k) * double(m) / result.us * 1e6;
    result.bare_read_us = bare_read_us(pitch);
    return result;
  }

  double run_chain(std::span<const BenchmarkWeight> weights, int64_t m) {
    std::vector<LinearArgs> args;
    std::vector<size_t> offsets;
    size_t offset = 0;
    int copies = 64;
    for (const BenchmarkWeight& weight : weights) {
      offsets.push_back(offset);
      copies = std::min(copies, make_copies(weight, offset, kArenaBytes / weights.size()));
      offset += kArenaBytes / weights.size() / 256 * 256;
    }
    // The last is the largest that was asked for: pointers of those before would be stale.
    for (int pass = 0; pass < 2; ++pass) {
      args.clear();
      for (const BenchmarkWeight& weight : weights) args.push_back(make_args(weight, m));
    }
    const int count = static_cast<int>(weights.size());
    return median_us(stream_, count * copies,
                     [&](int i) {
                       LinearArgs& now = args[i % count];
                       now.weight.data =
                           arena() + offsets[i % count] + i / count * bytes_of(weights[i % count]);
                       runner_.run(now, stream_);
                     }) *
           count;
  }

 private:
  static constexpr size_t kCopiesBytes = size_t{420} << 20;  // seven times the L2 of an H200
  static constexpr size_t kArenaBytes = 4 * kCopiesBytes;

  int sms() const { return properties_.multiProcessorCount; }
  uint8_t* arena() { return arena_.reserve(kArenaBytes); }

  double bare_read_us(size_t bytes) {
    const size_t copies =
        std::max<size_t>(1, (bytes > kCopiesBytes ? kArenaBytes : kCopiesBytes) / bytes);
    const int calls = static_cast<int>(std::min<size_t>(copies, 64));
    auto* sink = reinterpret_cast<uint32_t*>(outputs_.reserve(4096));
    double best = 1e30;
    for (const int per_sm : {2, 4})
      best = std::min(best, median_us(stream_, calls, [&](int i) {
                        launch_dependent(bare_read, dim3(sms() * per_sm), dim3(512), 0, stream_,
                                         arena() + (i % copies) * (bytes / 256 * 256), bytes / 16,
                                         sink);
                      }));
    return best;
  }

  // Makes copies of a weight in the arena from `offset` on; returns their number.
  int make_copies(const BenchmarkWeight& w, size_t offset, size_t most_bytes) {
    const size_t bytes = bytes_of(w);
    if (bytes > most_bytes)
      throw Error(ErrorKind::kInvalidArgument,
                  "benchmark: a weight of {} x {} takes {} bytes; room is for {}", w.n, w.k, bytes,
                  most_bytes);
    const int copies = static_cast<int>(std::clamp<size_t>(most_bytes / bytes, 1, 64));
    for (int i = 0; i < copies; ++i) {
      uint8_t* copy = arena() + offset + i * bytes;
      if (has_groups(w.format)) {
        const TileLayout layout = tile_layout(4, w.n, w.k, w.group_size);
        const bool two_level = w.format == LinearFormat::kW4A8TwoLevel;
        fill_scales<<<layout.row_blocks * layout.tiles, 64 * layout.groups, 0, stream_>>>(
            copy, layout, two_level,
            w.format == LinearFormat::kW4A16 ? 0x4300u + (w.zero_points ? 0u : 8u)
            : w.zero_points                  ? 0u
                                             : 8u,
            w.zero_points ? 15u : 0u);
        if (two_level) fill_floats(copy + layout.scales_offset(), layout.row_blocks * kTileRows);
      } else if (w.format == LinearFormat::kBf16) {
        // Exponents of about 2^-7, signs and fractions random.
        fill<<<sms() * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(copy), bytes / 4, 3,
                                             0x80ff80ffu, 0x3c003c00u);
      } else if (w.format == LinearFormat::kFp8) {
        fill<<<sms() * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(copy), bytes / 4, 3,
                                             0xbfbfbfbfu, 0);
        fill_floats(copy + w.n * fp8_row_bytes(w.k), w.n);
      } else {
        const TileLayout layout = tile_layout(8, w.n, w.k, 0);
        fill_int8<<<sms() * 8, 256, 0, stream_>>>(
            reinterpret_cast<uint32_t*>(copy), static_cast<size_t>(layout.scales_offset()) / 4, 3);
        fill_floats(copy + layout.scales_offset(), layout.row_blocks * kTileRows);
      }
    }
    return copies;
  }
  void fill_floats(uint8_t* to, int64_t count) {
    fill<<<64, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(to), static_cast<size_t>(count), 5,
                                  0x007fffffu, 0x3c000000u);
  }

  LinearArgs make_args(const BenchmarkWeight& w, int64_t m) {
    const LinearInput input = input_of(w.format);
    const int64_t stride = round_up(w.k, 16);
    const size_t x_bytes = static_cast<size_t>(m * stride) * (input == LinearInput::kBf16 ? 2 : 1);
    LinearArgs args;
    args.weight = {.format = w.format,
                   .n = w.n,
                   .k = w.k,
                   .group_size = has_groups(w.format) ? w.group_size : 0,
                   .zero_points = w.zero_points};
    args.m = m;
    uint8_t* x = inputs_.reserve(x_bytes + static_cast<size_t>(m) * 4 + 512);
    auto* scales = reinterpret_cast<float*>(x + round_up(static_cast<int64_t>(x_bytes), 256));
    if (input == LinearInput::kInt8)
      fill_int8<<<sms(), 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x), x_bytes / 4, 11);
    else
      fill<<<sms(), 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x), x_bytes / 4, 11,
                                       input == LinearInput::kBf16 ? 0x80ff80ffu : 0xbfbfbfbfu,
                                       input == LinearInput::kBf16 ? 0x3f003f00u : 0u);
    fill_floats(reinterpret_cast<uint8_t*>(scales), m);
    args.x = x;
    args.x_stride = stride;
    if (input != LinearInput::kBf16) args.x_scale = scales;
    args.y_stride = round_up(w.n, 8);
    args.y = outputs_.reserve(static_cast<size_t>(m * args.y_stride) * 2);
    return args;
  }

  std::unique_ptr<Device> device_ = open_device();  // first: it says what is missing
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  Memory arena_, inputs_, outputs_;
  LinearRunner runner_;
};

LinearBenchmark::LinearBenchmark() : impl_(std::make_unique<Impl>()) {}
LinearBenchmark::~LinearBenchmark() = default;
BenchmarkLimits LinearBenchmark::limits(bool peaks) { return impl_->limits(peaks); }
BenchmarkResult LinearBenchmark::run(const BenchmarkWeight& weight, int64_t m, bool streaming) {
  return impl_->run(weight, m, streaming);
}
double LinearBenchmark::run_chain(std::span<const BenchmarkWeight> weights, int64_t m) {
  return impl_->run_chain(weights, m);
}

}  // namespace whit::cuda
