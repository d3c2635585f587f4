// CUTLASS's int8 products with scales of tokens and channels, y in bf16, beside which
// bench/cuda_peers.py times w8a8: four shapes of tiles, the best of which counts. Not part of the
// build: needs CUTLASS's headers.
//
//   int8 N K M[,M…]      prints "shape M us", the median of 25 calls of a graph over copies of the
//                        weight larger than L2
// Pauses, warming and the length of what is timed are bench_cuda_kernels's: under these products
// the card's clock falls by a sixth after about 50 ms, and who is timed earlier looks faster.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"

namespace {

using cute::Int;
using cute::Shape;
using cute::Stride;
namespace gemm = cutlass::gemm;
namespace epilogue = cutlass::epilogue;

template <typename Tile, typename Cluster, typename Mainloop, typename Epilogue>
struct Kernel {
  using RowScale =
      epilogue::fusion::Sm90ColBroadcast<0, Tile, float, float, Stride<Int<1>, Int<0>, Int<0>>>;
  using ColumnScale =
      epilogue::fusion::Sm90RowBroadcast<0, Tile, float, float, Stride<Int<0>, Int<1>, Int<0>>>;
  template <typename Output>
  using Multiply = epilogue::fusion::Sm90Compute<cutlass::multiplies, Output, float,
                                                 cutlass::FloatRoundStyle::round_to_nearest>;
  using Scaled = epilogue::fusion::Sm90EVT<
      Multiply<cutlass::bfloat16_t>, RowScale,
      epilogue::fusion::Sm90EVT<Multiply<float>, ColumnScale, epilogue::fusion::Sm90AccFetch>>;
  using CollectiveEpilogue = typename epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      epilogue::collective::EpilogueTileAuto, int32_t, float, void, cutlass::layout::RowMajor, 8,
      cutlass::bfloat16_t, cutlass::layout::RowMajor, 8, Epilogue, Scaled>::CollectiveOp;
  using CollectiveMainloop = typename gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, cutlass::layout::RowMajor, 16,
      int8_t, cutlass::layout::ColumnMajor, 16, int32_t, Tile, Cluster,
      gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Gemm = gemm::device::GemmUniversalAdapter<
      gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue,
                                  gemm::PersistentScheduler>>;
};

struct Problem {
  int n, k, copies;
  cudaStream_t stream;
  int8_t *x, *weights;
  float *x_scale, *weight_scale;
  cutlass::bfloat16_t* y;
  char* workspace;
};
constexpr int kMostRows = 4096, kWorkspaceBytes = 1 << 20;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <typename Gemm>
void time_product(const char* name, const Problem& p, int m) {
  std::vector<Gemm> products(p.copies);
  for (int i = 0; i < p.copies; ++i) {
    typename Gemm::Arguments arguments{
        gemm::GemmUniversalMode::kGemm,
        {m, p.n, p.k, 1},
        {p.x, {p.k, Int<1>{}, 0}, p.weights + size_t(i) * p.n * p.k, {p.k, Int<1>{}, 0}},
        {{}, nullptr, {}, p.y, {p.n, Int<1>{}, 0}}};
    arguments.epilogue.thread = {{p.x_scale}, {{p.weight_scale}, {}, {}}, {}};
    if (Gemm::can_implement(arguments) != cutlass::Status::kSuccess ||
        products[i].initialize(arguments, p.workspace + i * kWorkspaceBytes) !=
            cutlass::Status::kSuccess)
      return;
  }
  check(cudaStreamSynchronize(p.stream), "preparing");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  auto elapsed_ms = [&] {
    check(cudaEventRecord(end, p.stream), "event");
    check(cudaEventSynchronize(end), name);
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    return ms;
  };
  check(cudaEventRecord(begin, p.stream), "event");
  for (Gemm& product : products) product.run(p.stream);
  const int rounds = std::clamp(static_cast<int>(1 / elapsed_ms()) + 1, 1, 400 / p.copies);
  const int calls = rounds * p.copies;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) products[i % p.copies].run(p.stream);
  check(cudaStreamEndCapture(p.stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "graph");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(15)) {
    check(cudaGraphLaunch(replay, p.stream), "replay");
    check(cudaStreamSynchronize(p.stream), name);
  }
  std::vector<float> times;
  for (int repeat = 0; repeat < 25; ++repeat) {
    check(cudaGraphLaunch(replay, p.stream), "replay");
    check(cudaEventRecord(begin, p.stream), "event");
    check(cudaGraphLaunch(replay, p.stream), "replay");
    times.push_back(elapsed_ms() * 1e3f / calls);
  }
  std::nth_element(times.begin(), times.begin() + 12, times.end());
  std::printf("%s %d %.1f\n", name, m, times[12]);
  check(cudaGraphExecDestroy(replay), "graph");
  check(cudaGraphDestroy(graph), "graph");
}

template <int kRows, int kColumns, int kClusterRows, int kClusterColumns, bool kCooperative>
using Product =
    typename Kernel<Shape<Int<kRows>, Int<kColumns>, Int<128>>,
                    Shape<Int<kClusterRows>, Int<kClusterColumns>, Int<1>>,
                    std::conditional_t<kCooperative, gemm::KernelTmaWarpSpecializedCooperative,
                                       gemm::KernelTmaWarpSpecializedPingpong>,
                    std::conditional_t<kCooperative, epilogue::TmaWarpSpecializedCooperative,
                                       epilogue::TmaWarpSpecialized>>::Gemm;

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: int8 N K M[,M...]\n");
    return 1;
  }
  Problem p{};
  p.n = std::atoi(argv[1]), p.k = std::atoi(argv[2]);
  const size_t bytes = size_t(p.n) * p.k;
  p.copies = static_cast<int>(std::clamp<size_t>((size_t{420} << 20) / bytes, 2, 64));
  // Codes as bell-shaped as those of bench_cuda_kernels.
  std::mt19937 random(1);
  std::vector<int8_t> codes(bytes);
  for (int8_t& code : codes) {
    const uint32_t r = random();
    code = static_cast<int8_t>(int((r & 255) + (r >> 8 & 255) + (r >> 16 & 255) + (r >> 24)) / 4 -
                               127);
  }
  const std::vector<float> scales(std::max(p.n, kMostRows), 0.01f);
  check(cudaStreamCreate(&p.stream), "stream");
  check(cudaMalloc(&p.x, size_t(kMostRows) * p.k), "memory");
  check(cudaMalloc(&p.weights, p.copies * bytes), "memory");
  check(cudaMalloc(&p.x_scale, kMostRows * 4), "memory");
  check(cudaMalloc(&p.weight_scale, p.n * 4), "memory");
  check(cudaMalloc(&p.y, size_t(kMostRows) * p.n * 2), "memory");
  check(cudaMalloc(&p.workspace, size_t(p.copies) * kWorkspaceBytes), "memory");
  for (int i = 0; i < p.copies; ++i)
    check(cudaMemcpy(p.weights + i * bytes, codes.data(), bytes, cudaMemcpyHostToDevice), "copy");
  for (size_t at = 0; at < size_t(kMostRows) * p.k;) {
    const size_t part = std::min(bytes, size_t(kMostRows) * p.k - at);
    check(cudaMemcpy(p.x + at, codes.data(), part, cudaMemcpyHostToDevice), "copy");
    at += part;
  }
  check(cudaMemcpy(p.x_scale, scales.data(), kMostRows * 4, cudaMemcpyHostToDevice), "copy");
  check(cudaMemcpy(p.weight_scale, scales.data(), p.n * 4, cudaMemcpyHostToDevice), "copy");
  std::istringstream rows(argv[3]);
  for (std::string m; std::getline(rows, m, ',');) {
    const int count = std::atoi(m.c_str());
    if (count < 1 || count > kMostRows) continue;
    time_product<Product<128, 128, 2, 1, false>>("128x128", p, count);
    time_product<Product<128, 256, 2, 1, true>>("128x256", p, count);
    time_product<Product<64, 128, 1, 2, false>>("64x128", p, count);
    time_product<Product<64, 256, 1, 2, false>>("64x256", p, count);
  }
  return 0;
}
