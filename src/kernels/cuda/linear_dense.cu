#include <cuda_bf16.h>

#include <map>
#include <tuple>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_dense.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/ptx.cuh"

namespace whit::cuda {
namespace {

// y += bias
template <typename Y>
__global__ void add_bias(const float* bias, Y* y, int64_t y_stride, int n) {
  wait_for_previous_kernel();
  let_next_kernel_launch();
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  Y& value = y[blockIdx.y * y_stride + column];
  value = static_cast<Y>(static_cast<float>(value) + bias[column]);
}

// Of few rows cuBLASLt's fp8 kernels with scales of rows and channels are slower than those without
// (28672 × 4096, µs at M = 1 and 16: H200 44, 47 and 30, 30; H100 47, 50 and 42, 43). There sums go
// to f32 memory, to be scaled by a kernel that takes 2 µs, and 10 of 64 rows, which is too much.
constexpr int64_t kMostStagedRows = 16;
constexpr size_t kStagingBytes = size_t{16} << 20;  // of the workspace

bool is_staged(const LinearArgs& args) {
  return args.weight.format == LinearFormat::kFp8 && args.m <= kMostStagedRows &&
         args.m * args.weight.n * 4 <= static_cast<int64_t>(kStagingBytes);
}

__global__ void scale_sums(const float* sums, const float* weight_scales, Epilogue epilogue,
                           int n) {
  wait_for_previous_kernel();
  let_next_kernel_launch();
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = blockIdx.y;
  if (column >= n) return;
  epilogue.store(__fmul_rn(sums[int64_t{row} * n + column], weight_scales[column]), row, column);
}

// One product's descriptors and algorithm. Column-major in cuBLAS's eyes: yᵀ[N, M] = w[N, K] · xᵀ.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr, residual = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace = 0;
};

}  // namespace

struct DenseLinear::State : CublasSession {
  using Key =
      std::tuple<LinearFormat, OutputType, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
  std::map<Key, Plan> plans;

  ~State() {
    for (auto& [key, plan] : plans) {
      library.desc_destroy(plan.desc);
      for (cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y, plan.residual})
        library.layout_destroy(layout);
    }
  }

  template <typename T>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    check(library.desc_set(desc, attribute, &value, sizeof(value)), "attribute of a product");
  }

  static const void* weight_scales_of(const LinearArgs& args) {
    return static_cast<const std::byte*>(args.weight.data) +
           args.weight.n * fp8_row_bytes(args.weight.k);
  }
  void* staging() {
    return static_cast<std::byte*>(workspace) + kCublasWorkspaceBytes - kStagingBytes;
  }

  void set_scales(const LinearArgs& args, const Plan& plan) {
    if (args.weight.format != LinearFormat::kFp8 || is_staged(args)) return;
    const void* weight_scales = weight_scales_of(args);
    set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, weight_scales);
    set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, args.x_scale);
  }

  Plan make_plan(const LinearArgs& args) {
    const bool fp8 = args.weight.format == LinearFormat::kFp8;
    const cudaDataType_t input = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const bool staged = is_staged(args);
    const cudaDataType_t output =
        staged || args.y_type == OutputType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
    const size_t workspace_bytes = kCublasWorkspaceBytes - (staged ? kStagingBytes : 0);
    const int64_t n = args.weight.n, k = fp8 ? fp8_row_bytes(args.weight.k) : args.weight.k;
    const int64_t y_stride = staged ? n : args.y_stride;
    const int64_t residual_stride =
        staged || args.residual == nullptr ? y_stride : args.residual_stride;
    Plan plan;
    check(library.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (fp8 && !staged) {
      constexpr int32_t kPerRow = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kPerRow);
      set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kPerRow);
      set_scales(args, plan);
    }
    check(library.layout_create(&plan.w, input, k, n, k), "layout");
    check(library.layout_create(&plan.x, input, k, args.m, args.x_stride), "layout");
    check(library.layout_create(&plan.y, output, n, args.m, y_stride), "layout");
    check(library.layout_create(&plan.residual, output, n, args.m, residual_stride), "layout");
    cublasLtMatmulPreference_t preference = nullptr;
    check(library.preference_create(&preference), "preference");
    check(library.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                 &workspace_bytes, sizeof(workspace_bytes)),
          "preference");
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = library.heuristic(
        handle, plan.desc, plan.w, plan.x, plan.residual, plan.y, preference, 1, &found, &count);
    library.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0)
      throw Error(ErrorKind::kUnsupported,
                  "cuBLASLt has no {} product of M {}, N {}, K {} for this GPU (status {}); use "
                  "--backend cpu",
                  name(args.weight.format), args.m, n, k, static_cast<int>(status));
    plan.algorithm = found.algo;
    plan.workspace = found.workspaceSize;
    return plan;
  }
};

DenseLinear::DenseLinear() : state_(std::make_unique<State>()) {}
DenseLinear::~DenseLinear() = default;

void DenseLinear::run(const LinearArgs& args, CUstream_st* stream) {
  State& state = *state_;
  const State::Key key{args.weight.format,
                       args.y_type,
                       args.m,
                       args.weight.n,
                       args.weight.k,
                       args.x_stride,
                       args.y_stride,
                       args.residual == nullptr ? -1 : args.residual_stride};
  auto plan = state.plans.find(key);
  if (plan == state.plans.end()) plan = state.plans.emplace(key, state.make_plan(args)).first;
  state.set_scales(args, plan->second);
  const float alpha = 1, beta = args.residual == nullptr ? 0 : 1;
  const Plan& p = plan->second;
  const int n = static_cast<int>(args.weight.n);
  const dim3 grid((n + 255) / 256, static_cast<unsigned>(args.m));
  if (is_staged(args)) {
    const float one = 1, none = 0;
    check(state.library.matmul(state.handle, p.desc, &one, args.weight.data, p.w, args.x, p.x,
                               &none, state.staging(), p.residual, state.staging(), p.y,
                               &p.algorithm, state.workspace, p.workspace, stream),
          "product");
    launch_dependent(
        scale_sums, grid, dim3(256), 0, stream, static_cast<const float*>(state.staging()),
        static_cast<const float*>(State::weight_scales_of(args)), epilogue_of(args), n);
    return;
  }
  check(state.library.matmul(state.handle, p.desc, &alpha, args.weight.data, p.w, args.x, p.x,
                             &beta, args.residual == nullptr ? args.y : args.residual, p.residual,
                             args.y, p.y, &p.algorithm, state.workspace, p.workspace, stream),
        "product");
  if (args.bias == nullptr) return;
  if (args.y_type == OutputType::kF32)
    launch_dependent(add_bias<float>, grid, dim3(256), 0, stream, args.bias,
                     static_cast<float*>(args.y), args.y_stride, n);
  else
    launch_dependent(add_bias<__nv_bfloat16>, grid, dim3(256), 0, stream, args.bias,
                     static_cast<__nv_bfloat16*>(args.y), args.y_stride, n);
}

}  // namespace whit::cuda
