// Decode and prefill attention of the CUDA backend at Llama-3-8B's heads (32 query, 8 key/value, of
// 128), paged, from device memory.
//
//   bench_cuda_attention [BANDWIDTH in GB/s, default 3090] [decode | prefill]
//
// kernels/cuda/small_ops_benchmark.h says how each time is taken. %BW: keys and values read once,
// over that time, of the bandwidth given. Prefill: causal flop (4 · Dh a visible pair) a second.
#include <fmt/format.h>

#include <string_view>

#include "kernels/cuda/small_ops_benchmark.h"

namespace whit::cuda {
namespace {

int run(double bandwidth, std::string_view only) {
  const auto device = open_device();
  SmallOpsBenchmark benchmark(*device);
  fmt::print("| attention | batch | context | us | |\n|---|--:|--:|--:|--:|\n");
  const auto measure = [&](KvStorage storage, int64_t batch, int64_t context, int64_t tokens) {
    const SmallOpTiming timing = benchmark.attention({.storage = storage,
                                                      .heads = 32,
                                                      .kv_heads = 8,
                                                      .head_dim = 128,
                                                      .batch = batch,
                                                      .context = context,
                                                      .tokens = tokens});
    if (tokens == 1)
      fmt::print("| decode {} | {} | {} | {:.1f} | {:.0f} %BW |\n", name(storage), batch, context,
                 timing.us, 100 * timing.bytes / (bandwidth * 1e3) / timing.us);
    else
      fmt::print("| prefill {} | {} | {} | {:.1f} | {:.0f} TFLOP/s |\n", name(storage), batch,
                 context, timing.us, timing.operations / timing.us / 1e6);
    std::fflush(stdout);
  };
  for (const KvStorage storage : {KvStorage::kBf16, KvStorage::kInt8, KvStorage::kFp8}) {
    if (only != "prefill") {
      for (const int64_t batch : {1, 16, 64}) measure(storage, batch, 4096, 1);
      for (const int64_t context : {1024, 32768}) measure(storage, 1, context, 1);
    }
    if (only != "decode")
      for (const int64_t tokens : {1024, 4096, 16384}) measure(storage, 1, tokens, tokens);
  }
  return 0;
}

}  // namespace
}  // namespace whit::cuda

int main(int argc, char** argv) {
  try {
    return whit::cuda::run(argc > 1 ? std::stod(argv[1]) : 3090, argc > 2 ? argv[2] : "");
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_cuda_attention: {}\n", error.what());
    return 1;
  }
}
