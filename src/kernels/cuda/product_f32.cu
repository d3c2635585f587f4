#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product_f32.h"

namespace whit::cuda {
namespace {

// Column-major in cuBLAS's eyes: yᵀ[n, m] = w[n, k] · xᵀ[k, m].
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace = 0;
};

// The largest power of two, up to 256 bytes, that divides an address and a batch's distances.
uint32_t alignment(const float* pointer, int64_t step) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(step * 4) | 256u;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

}  // namespace

struct ProductF32::State : CublasSession {
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, bool,
                         int64_t, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t>;
  std::map<Key, Plan> plans;

  ~State() {
    for (auto& [key, plan] : plans) {
      library.desc_destroy(plan.desc);
      for (cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y}) library.layout_destroy(layout);
    }
  }

  static Key key_of(const ProductArgs& args) {
    return {args.m,
            args.n,
            args.k,
            args.x_stride,
            args.w_stride,
            args.y_stride,
            args.x_by_columns,
            args.w_by_columns,
            args.beta != 0,
            args.batch,
            args.x_step,
            args.w_step,
            args.y_step,
            alignment(args.x, args.x_step),
            alignment(args.w, args.w_step),
            alignment(args.y, args.y_step)};
  }

  cublasLtMatrixLayout_t layout(int64_t rows, int64_t columns, int64_t stride, int64_t batch,
                                int64_t step) {
    cublasLtMatrixLayout_t made = nullptr;
    check(library.layout_create(&made, CUDA_R_32F, rows, columns, stride), "layout");
    if (batch > 1) {
      const auto count = static_cast<int32_t>(batch);
      check(library.layout_set(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
            "layout of a batch");
      check(library.layout_set(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                               sizeof(step)),
            "layout of a batch");
    }
    return made;
  }

  Plan make_plan(const ProductArgs& args) {
    Plan plan;
    check(library.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    const cublasOperation_t of_w = args.w_by_columns ? CUBLAS_OP_N : CUBLAS_OP_T;
    const cublasOperation_t of_x = args.x_by_columns ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(library.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &of_w, sizeof(of_w)), "product");
    check(library.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, &of_x, sizeof(of_x)), "product");
    plan.w = args.w_by_columns ? layout(args.n, args.k, args.w_stride, args.batch, args.w_step)
                               : layout(args.k, args.n, args.w_stride, args.batch, args.w_step);
    plan.x = args.x_by_columns ? layout(args.m, args.k, args.x_stride, args.batch, args.x_step)
                               : layout(args.k, args.m, args.x_stride, args.batch, args.x_step);
    plan.y = layout(args.n, args.m, args.y_stride, args.batch, args.y_step);
    cublasLtMatmulPreference_t preference = nullptr;
    check(library.preference_create(&preference), "preference");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(library.preference_set(preference, attribute, &value, sizeof(value)), "preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kCublasWorkspaceBytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(args.w, args.w_step));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(args.x, args.x_step));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(args.y, args.y_step));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(args.y, args.y_step));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = library.heuristic(handle, plan.desc, plan.w, plan.x, plan.y,
                                                    plan.y, preference, 1, &found, &count);
    library.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0)
      throw Error(ErrorKind::kUnsupported,
                  "cuBLASLt has no f32 product of M {}, N {}, K {} for this GPU (status {})",
                  args.m, args.n, args.k, static_cast<int>(status));
    plan.algorithm = found.algo;
    plan.workspace = found.workspaceSize;
    return plan;
  }
};

ProductF32::ProductF32() : state_(std::make_unique<State>()) {}
ProductF32::~ProductF32() = default;

void ProductF32::run(const ProductArgs& args, CUstream_st* stream) {
  State& state = *state_;
  const State::Key key = State::key_of(args);
  auto plan = state.plans.find(key);
  if (plan == state.plans.end()) plan = state.plans.emplace(key, state.make_plan(args)).first;
  const Plan& p = plan->second;
  check(state.library.matmul(state.handle, p.desc, &args.alpha, args.w, p.w, args.x, p.x,
                             &args.beta, args.y, p.y, args.y, p.y, &p.algorithm, state.workspace,
                             p.workspace, stream),
        "product");
}

}  // namespace whit::cuda
