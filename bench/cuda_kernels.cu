// bench_cuda_kernels [--shapes NxK,…] [--m M,…] [--formats NAME,…] [--chain | --skinny]: the CUDA
// backend's linears, each alone in a CUDA graph over rotating copies of its weight, larger together
// than any L2, so that weights come from device memory. Prints, for every format, shape and M, the
// median time, TB/s of weight bytes and their share of the measured read bandwidth and of a bare
// read of as many bytes, or TOP/s and their share of the measured dense peak. All of it in one run.
//   --chain   instead: the four linears of a Llama-3-8B layer one after the other, as a model runs
//             them (programmatic dependent launch hides launches and first bytes)
//   --skinny  low-bit formats by the streaming kernel at every M
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_skinny.h"
#include "kernels/cuda/ptx.cuh"

namespace whit::cuda {
namespace {

constexpr size_t kCopiesBytes = size_t{420} << 20;  // seven times the L2 of an H200

__global__ void fill(uint32_t* p, size_t words, uint32_t seed, uint32_t keep, uint32_t set) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    for (int round = 0; round < 2; ++round) x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    p[i] = (x & keep) | set;
  }
}
// The scale words of every tile.
__global__ void fill_scales(uint8_t* weight, TileLayout layout, bool multiples, uint32_t zero,
                            uint32_t keep) {
  const int64_t tile = blockIdx.x;
  auto* words = reinterpret_cast<uint32_t*>(weight + tile * layout.tile_bytes + 4 * kUnitBytes);
  const uint32_t x = (static_cast<uint32_t>(tile) * 64 + threadIdx.x) * 2654435761u >> 8;
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

void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes), "memory of the benchmark");
  return p;
}

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

struct Format {
  const char* name;
  LinearFormat format;
  bool zero_points;
};
constexpr Format kFormats[] = {{"w4a8", LinearFormat::kW4A8, true},
                               {"w4a8-sym", LinearFormat::kW4A8, false},
                               {"w4a8-2l", LinearFormat::kW4A8TwoLevel, true},
                               {"w4a16", LinearFormat::kW4A16, true},
                               {"w8a8", LinearFormat::kW8A8, false},
                               {"w8a16", LinearFormat::kW8A16, false},
                               {"fp8", LinearFormat::kFp8, false},
                               {"bf16", LinearFormat::kBf16, false}};

struct Shape {
  int64_t n, k;
};

class Bench {
 public:
  explicit Bench(bool skinny) : skinny_(skinny) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "device");
    sms_ = properties.multiProcessorCount;
    check(cudaStreamCreate(&stream_), "stream");
    arena_ = static_cast<uint8_t*>(allocate(kCopiesBytes * 4));
    scratch_ = static_cast<uint8_t*>(allocate(size_t{1} << 30));
    refill();
    std::printf("%s, %d SMs\n", properties.name, sms_);
    const double us = bare_read_us(kCopiesBytes * 4);
    read_tbs_ = double(kCopiesBytes) * 4 / us / 1e6;
    std::printf("read bandwidth %.2f TB/s\n", read_tbs_);
  }

  double bare_read_us(size_t bytes) {
    const size_t copies =
        std::max<size_t>(1, (bytes > kCopiesBytes ? 4 : 1) * kCopiesBytes / bytes);
    const int calls = static_cast<int>(std::min<size_t>(copies, 64));
    double best = 1e30;
    for (const int per_sm : {2, 4})
      best = std::min(best, median_us(stream_, calls, [&](int i) {
                        launch_dependent(bare_read, dim3(sms_ * per_sm), dim3(512), 0, stream_,
                                         arena_ + (i % copies) * (bytes / 256 * 256), bytes / 16,
                                         reinterpret_cast<uint32_t*>(scratch_));
                      }));
    return best;
  }

  // Random bytes everywhere: codes of any format; floats, bf16 and e4m3 of moderate size.
  void refill() {
    fill<<<sms_ * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(arena_), kCopiesBytes, 7,
                                        0xffffffffu, 0);
    check(cudaStreamSynchronize(stream_), "fill");
  }

  // Makes copies of a weight in the arena from `offset` on; returns their number.
  int make_copies(const Format& f, const Shape& s, size_t offset, size_t most_bytes) {
    const size_t bytes = static_cast<size_t>(packed_bytes(f.format, s.n, s.k, 128));
    const size_t pitch = (bytes + 255) / 256 * 256;
    const int copies = static_cast<int>(std::clamp<size_t>(most_bytes / pitch, 1, 64));
    const bool two_level = f.format == LinearFormat::kW4A8TwoLevel;
    const bool int4 =
        f.format == LinearFormat::kW4A8 || f.format == LinearFormat::kW4A16 || two_level;
    for (int i = 0; i < copies; ++i) {
      uint8_t* copy = arena_ + offset + i * pitch;
      if (int4) {
        const TileLayout layout = tile_layout(4, s.n, s.k, 128);
        fill_scales<<<layout.row_blocks * layout.tiles, 64, 0, stream_>>>(
            copy, layout, two_level,
            f.format == LinearFormat::kW4A16 ? 0x4300u
            : f.zero_points                  ? 0u
                                             : 8u,
            f.zero_points ? 15u : 0u);
      } else if (f.format == LinearFormat::kBf16) {
        // Exponents of about 2^-7, signs and fractions random.
        fill<<<sms_ * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(copy), bytes / 4, 3,
                                            0x80ff80ffu, 0x3c003c00u);
      } else {
        const size_t scales = static_cast<size_t>(s.n) * 4;
        if (f.format == LinearFormat::kFp8)
          fill<<<sms_ * 8, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(copy), bytes / 4, 3,
                                              0xbfbfbfbfu, 0);
        fill<<<64, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(copy + bytes - scales),
                                      scales / 4, 5, 0x007fffffu, 0x3c000000u);
      }
    }
    return copies;
  }

  LinearArgs make_args(const Format& f, const Shape& s, int64_t m) {
    LinearArgs args;
    args.weight = {
        .format = f.format, .n = s.n, .k = s.k, .group_size = 128, .zero_points = f.zero_points};
    args.m = m;
    const LinearInput input = input_of(f.format);
    uint8_t* x = scratch_ + 4096;
    const size_t words = static_cast<size_t>(m * s.k) / (input == LinearInput::kBf16 ? 2 : 4);
    fill<<<sms_, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x), words, 11,
                                    input == LinearInput::kBf16   ? 0x80ff80ffu
                                    : input == LinearInput::kE4m3 ? 0xbfbfbfbfu
                                                                  : 0xffffffffu,
                                    input == LinearInput::kBf16 ? 0x3f003f00u : 0u);
    args.x = x;
    args.x_stride = s.k;
    auto* scales = reinterpret_cast<float*>(scratch_ + (size_t{300} << 20));
    fill<<<64, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(scales), m, 13, 0x007fffffu,
                                  0x3c000000u);
    if (input != LinearInput::kBf16) args.x_scale = scales;
    args.y = scratch_ + (size_t{310} << 20);
    args.y_stride = s.n;
    return args;
  }

  double time(const Format& f, const Shape& s, int64_t m) {
    const size_t bytes = static_cast<size_t>(packed_bytes(f.format, s.n, s.k, 128));
    const size_t pitch = (bytes + 255) / 256 * 256;
    const int copies = make_copies(f, s, 0, kCopiesBytes);
    LinearArgs args = make_args(f, s, m);
    return median_us(stream_, std::max(2, std::min(copies, 64)), [&](int i) {
      args.weight.data = arena_ + (i % copies) * pitch;
      if (skinny_)
        run_skinny(args, {.sms = sms_, .capability = 90}, stream_);
      else
        runner_.run(args, stream_);
    });
  }

  // The layer's four linears in turn, over rotating copies of all four.
  double time_layer(const Format& f, int64_t m) {
    const Shape shapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
    std::vector<LinearArgs> args;
    std::vector<size_t> pitches, offsets;
    size_t offset = 0;
    int copies = 64;
    for (const Shape& s : shapes) {
      args.push_back(make_args(f, s, m));
      offsets.push_back(offset);
      pitches.push_back((static_cast<size_t>(packed_bytes(f.format, s.n, s.k, 128)) + 255) / 256 *
                        256);
      copies = std::min(copies, make_copies(f, s, offset, kCopiesBytes));
      offset += kCopiesBytes;
    }
    return median_us(stream_, 4 * copies, [&](int i) {
      for (size_t j = 0; j < args.size(); ++j) {
        args[j].weight.data = arena_ + offsets[j] + i % copies * pitches[j];
        runner_.run(args[j], stream_);
      }
    });
  }

  void peaks() {
    const bool skinny = std::exchange(skinny_, false);
    for (const char* wanted : {"w8a8", "fp8", "bf16"})
      for (const Format& f : kFormats)
        if (std::string(f.name) == wanted) {
          const Shape s{8192, 8192};
          const double us = time(f, s, 8192);
          const double tops = 2.0 * 8192 * 8192 * 8192 / us / 1e6;
          std::printf("%s 8192^3: %.0f us, %.0f TOP/s\n", f.name, us, tops);
          if (f.format == LinearFormat::kBf16)
            bf16_tops_ = tops;
          else
            int8_tops_ = std::max(int8_tops_, tops);
        }
    skinny_ = skinny;
  }

  void row(const Format& f, const Shape& s, int64_t m) {
    const double us = time(f, s, m);
    const double bytes = double(packed_bytes(f.format, s.n, s.k, 128));
    const double tops = 2.0 * double(s.n) * double(s.k) * double(m) / us / 1e6;
    const double bare = bare_read_us(size_t(bytes));
    const double peak = input_of(f.format) == LinearInput::kBf16 ? bf16_tops_ : int8_tops_;
    std::printf("%-8s %6ldx%-6ld %5ld %8.1f  %5.2f TB/s %5.1f %%  %7.1f %5.1f %%  %6.0f %5.1f %%\n",
                f.name, long(s.n), long(s.k), long(m), us, bytes / us / 1e6,
                100 * bytes / us / 1e6 / read_tbs_, bare, 100 * bare / us, tops, 100 * tops / peak);
    std::fflush(stdout);
  }

 private:
  bool skinny_;
  int sms_ = 0;
  cudaStream_t stream_ = nullptr;
  uint8_t* arena_ = nullptr;
  uint8_t* scratch_ = nullptr;
  double read_tbs_ = 1, int8_tops_ = 1, bf16_tops_ = 1;
  LinearRunner runner_;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

int run(int argc, char** argv) {
  std::string shapes = "6144x4096,4096x4096,28672x4096,4096x14336", ms = "1,16,64,128,256,1024",
              formats = "w4a8,w4a8-sym,w4a16,w8a8,fp8,bf16";
  bool chain = false, skinny = false, peaks = true;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--chain")
      chain = true;
    else if (flag == "--skinny")
      skinny = true;
    else if (flag == "--no-peaks")
      peaks = false;
    else if (i + 1 < argc && flag == "--shapes")
      shapes = argv[++i];
    else if (i + 1 < argc && flag == "--m")
      ms = argv[++i];
    else if (i + 1 < argc && flag == "--formats")
      formats = argv[++i];
    else
      throw Error(ErrorKind::kInvalidArgument,
                  "usage: bench_cuda_kernels [--shapes NxK,…] [--m M,…] [--formats NAME,…] "
                  "[--chain | --skinny]");
  }
  Bench bench(skinny);
  if (peaks) bench.peaks();
  if (!chain)
    std::printf(
        "format      N x K          M       us   weights of read BW   bare us      of it   "
        "TOP/s of peak\n");
  for (const std::string& name : split(formats))
    for (const Format& f : kFormats) {
      if (name != f.name) continue;
      for (const std::string& m : split(ms)) {
        if (chain) {
          std::printf("layer %-8s M %5s %8.1f us\n", f.name, m.c_str(),
                      bench.time_layer(f, std::stol(m)));
          std::fflush(stdout);
          continue;
        }
        for (const std::string& shape : split(shapes)) {
          const size_t x = shape.find('x');
          bench.row(f, {std::stol(shape.substr(0, x)), std::stol(shape.substr(x + 1))},
                    std::stol(m));
        }
      }
    }
  return 0;
}

}  // namespace
}  // namespace whit::cuda

int main(int argc, char** argv) {
  try {
    return whit::cuda::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
