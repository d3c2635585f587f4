// Quality: perplexity, and divergence from a reference model, on a text.
//
// The text's tokens are cut into windows of ctx_size, each scored on its own from an empty cache;
// every token of a window but the first is scored; a last partial window is dropped (a text shorter
// than one window is one window). This is how the published figures in the README were taken.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/executor.h"

namespace whit {

struct EvalOptions {
  int64_t ctx_size = 2048;
  int64_t max_windows = 0;  // 0: all
  KvFormat kv_dtype = DType::kF32;
  KvFormat reference_kv_dtype = DType::kF32;
};

struct EvalResult {
  double ppl = 0;
  double ppl_stderr = 0;  // standard error of the mean negative log likelihood, carried to PPL
  int64_t tokens = 0;     // scored
  double seconds = 0;
  // With a reference: over the scored positions, KL(reference ‖ model) in nats and the share with
  // the same argmax.
  std::optional<double> reference_ppl, ppl_ratio, kld, kld_stderr, top1_agreement;
};
Json to_json(const EvalResult& result);

// Throws kInvalidArgument where the text has fewer than two tokens or ctx_size exceeds the model's
// context.
EvalResult evaluate(Executor& model, Executor* reference, std::span<const int32_t> ids,
                    const EvalOptions& options);

// The same for several models at once; the reference, which takes most of the time, runs once.
struct EvalModel {
  Executor& executor;
  KvFormat kv_dtype;  // in place of the options'
};
std::vector<EvalResult> evaluate(std::span<const EvalModel> models, Executor* reference,
                                 std::span<const int32_t> ids, const EvalOptions& options);

}  // namespace whit
