// Many sequences decoded together from one cache: text for calibration that the model writes
// itself.
#pragma once

#include <span>
#include <vector>

#include "engine/executor.h"

namespace whit {

// A step's rows: the executor's max_tokens should be at least kBatchStepTokens or the number of
// sequences, its max_logit_rows at least kBatchSequences.
inline constexpr int64_t kBatchStepTokens = 256;
// Sequences decoding together: enough that products, and no longer reading the weights, take most
// of a step (a 135M model in f32 on 2 cores: 27 ms to read 540 MB, 72 ms for 32 tokens' products).
inline constexpr int64_t kBatchSequences = 32;

struct BatchGenerationOptions {
  int64_t sequences = 1;
  int64_t length = 512;  // tokens of each sequence, prompts included
  uint64_t seed = 0;
  double temperature = 1.0;
  std::vector<int32_t> stop_ids;
  KvFormat kv_dtype;
};

// [sequences, length] ids. Sequence i begins with prompt i (mod their number); where the model ends
// its answer, the sequence goes on with another prompt, until it has `length` tokens. Every
// sequence draws from its own generator, so that the result depends neither on how many are decoded
// together nor on the number of threads. Throws kInterrupted after Ctrl-C.
std::vector<int32_t> generate_batch(Executor& executor,
                                    std::span<const std::vector<int32_t>> prompts,
                                    const BatchGenerationOptions& options);

}  // namespace whit
