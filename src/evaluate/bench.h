// Speed: prompt processing and decoding rates in llama-bench's terms, beside what the machine's
// memory allows.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/executor.h"
#include "engine/machine_limits.h"

namespace whit {

struct BenchOptions {
  std::vector<int64_t> prompts = {512};      // pp<N>: one sequence of N tokens, logits of the last
  std::vector<int64_t> generations = {128};  // tg<N>: N greedy-like steps per sequence
  int64_t depth = 0;                   // tokens in a sequence's context before tg's first step
  std::vector<int64_t> batches = {1};  // sequences decoding together, for tg
  int repetitions = 5;
  KvFormat kv_dtype;
};

struct BenchRow {
  std::string test;  // "pp512", "tg128"
  int64_t batch = 1;
  double tokens_per_s = 0;  // median over the repetitions; all sequences together
  double spread = 0;        // half of (maximum − minimum) of tokens_per_s
  // tg: weight and KV bytes per step ÷ what the machine reads; pp: 0.
  double percent_of_roofline = 0;
  // pp: operations of the decoder's linears ÷ the machine's int8 multiplications, all else that a
  // prompt costs in the time; tg, and where there is no such peak: 0.
  double percent_of_int8_peak = 0;
  int64_t barriers_per_step = 0;  // at which all threads of the body meet; pp: of a whole chunk
};
Json to_json(const BenchRow& row);

std::vector<BenchRow> bench(Executor& model, const BenchOptions& options,
                            const MachineLimits& limits);

}  // namespace whit
