// 4-bit weights in groups of 128, int8 activations.
#include <array>
#include <atomic>

#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

int blocks_in_clusters(int size, int sms) {
  if (size == 1) return sms;
  // Of whichever kernel: each leaves room for one block an SM. 0 until asked for.
  static std::array<std::atomic<int>, kWideMostParts + 1> known{};
  int blocks = known[size];
  if (blocks > 0) return blocks;
  using S = WideShape<LinearFormat::kW4A8, 64, 64>;
  auto* kernel = wide<LinearFormat::kW4A8, 64, 64, true>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "shared memory of the wide linear");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(sms / size * size);
  config.blockDim = dim3(kWideThreads);
  config.dynamicSmemBytes = S::kSharedBytes;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "room for clusters");
  known[size] = blocks = std::max(clusters, 1) * size;
  return blocks;
}

void wide_w4a8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
               cudaStream_t stream) {
  if (args.weight.zero_points)
    launch_wide<LinearFormat::kW4A8, true>(args, p, tokens, sms, stream);
  else
    launch_wide<LinearFormat::kW4A8, false>(args, p, tokens, sms, stream);
}

}  // namespace whit::cuda
