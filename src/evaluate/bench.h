// Speed: prompt processing and decoding rates in llama-bench's terms, beside what the machine's
// memory allows.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/executor.h"

namespace whit {

struct BenchOptions {
  std::vector<int64_t> prompts = {512};  // pp<N>: one sequence of N tokens, logits of the last
  std::vector<int64_t> generations = {
      128};  // tg<N>: N greedy-like steps per sequence from an empty context
  std::vector<int64_t> batches = {1};  // sequences decoding together, for tg
  int repetitions = 5;
  KvFormat kv_dtype;
};

struct BenchRow {
  std::string test;  // "pp512", "tg128"
  int64_t batch = 1;
  double tokens_per_s = 0;  // median over the repetitions; all sequences together
  double spread = 0;        // half of (maximum − minimum) of tokens_per_s
  double percent_of_roofline =
      0;  // tg: weight and KV bytes per step ÷ measured bandwidth; pp: 0 (no peak measured)
};
Json to_json(const BenchRow& row);

std::vector<BenchRow> bench(Executor& model, const BenchOptions& options,
                            double bandwidth_bytes_per_s);

// Bytes per second that all threads together read from memory that no cache holds: the median of 5
// sweeps over 512 MB.
double measure_read_bandwidth(ThreadPool& pool);

}  // namespace whit
