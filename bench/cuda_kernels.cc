// bench_cuda_kernels [--shapes NxK,…] [--m M,…] [--formats NAME,…] [--chain | --skinny]
// [--no-peaks]: the CUDA backend's linears at shapes of one's own (kernels/cuda/benchmark.h; of a
// model: whit bench MODEL --backend cuda --kernels).
//   --chain    instead: the four linears of a Llama-3-8B layer one after the other, as a model runs
//              them (programmatic dependent launch hides launches and first bytes)
//   --skinny   low-bit formats by the streaming kernel at every M
//   --no-peaks without the dense peaks, a second of measuring
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/benchmark.h"

namespace whit::cuda {
namespace {

struct Format {
  const char* name;
  LinearFormat format;
  bool zero_points;
};
constexpr Format kFormats[] = {{"w4a8", LinearFormat::kW4A8, true},
                               {"w4a8-sym", LinearFormat::kW4A8, false},
                               {"w4a8-2l", LinearFormat::kW4A8TwoLevel, true},
                               {"w4a16", LinearFormat::kW4A16, true},
                               {"w4afp8", LinearFormat::kW4AFp8, true},
                               {"w4afp8-sym", LinearFormat::kW4AFp8, false},
                               {"w8a8", LinearFormat::kW8A8, false},
                               {"w8a16", LinearFormat::kW8A16, false},
                               {"fp8", LinearFormat::kFp8, false},
                               {"bf16", LinearFormat::kBf16, false}};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

BenchmarkWeight weight_of(const Format& f, const std::string& shape) {
  const size_t x = shape.find('x');
  if (x == std::string::npos)
    throw Error(ErrorKind::kInvalidArgument, "--shapes {}: not NxK", shape);
  return {.format = f.format,
          .n = std::stol(shape.substr(0, x)),
          .k = std::stol(shape.substr(x + 1)),
          .zero_points = f.zero_points};
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
                  "[--chain | --skinny] [--no-peaks]");
  }
  LinearBenchmark benchmark;
  const BenchmarkLimits limits = benchmark.limits(peaks);
  std::printf("%s, %d SMs; read %.2f TB/s; peaks: 8 bits %.0f TOP/s, bf16 %.0f TFLOP/s\n",
              limits.device.c_str(), limits.sms, limits.read_bytes_per_s / 1e12,
              limits.int8_operations_per_s / 1e12, limits.bf16_operations_per_s / 1e12);
  if (!chain)
    std::printf(
        "format      N x K          M       us   weights of read BW   bare us      of it   "
        "TOP/s of peak\n");
  for (const std::string& name : split(formats))
    for (const Format& f : kFormats) {
      if (name != f.name) continue;
      for (const std::string& m : split(ms)) {
        if (chain) {
          std::vector<BenchmarkWeight> layer;
          for (const char* shape : {"6144x4096", "4096x4096", "28672x4096", "4096x14336"})
            layer.push_back(weight_of(f, shape));
          std::printf("layer %-8s M %5s %8.1f us\n", f.name, m.c_str(),
                      benchmark.run_chain(layer, std::stol(m)));
          std::fflush(stdout);
          continue;
        }
        for (const std::string& shape : split(shapes)) {
          const BenchmarkWeight weight = weight_of(f, shape);
          const BenchmarkResult r = benchmark.run(weight, std::stol(m), skinny);
          const double peak = input_of(f.format) == LinearInput::kBf16
                                  ? limits.bf16_operations_per_s
                                  : limits.int8_operations_per_s;
          std::printf(
              "%-8s %6ldx%-6ld %5s %8.1f  %5.2f TB/s %5.1f %%  %7.1f %5.1f %%  %6.0f %5.1f %%\n",
              f.name, long(weight.n), long(weight.k), m.c_str(), r.us, r.weight_bytes_per_s / 1e12,
              100 * r.weight_bytes_per_s / limits.read_bytes_per_s, r.bare_read_us,
              100 * r.bare_read_us / r.us, r.operations_per_s / 1e12,
              peak > 0 ? 100 * r.operations_per_s / peak : 0.0);
          std::fflush(stdout);
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
