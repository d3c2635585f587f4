// Statistics of the inputs of linears, taken window by window while calibration data flows through
// a layer.
#pragma once

#include <map>
#include <vector>

#include "calibrate/matmul.h"
#include "graph/graph.h"
#include "tensor/tensor.h"

namespace whit {

// Tokens that only judge: searches choose on kSearch and are accepted on kHeldOut.
enum class Split { kSearch, kHeldOut };

// Of one split: everything a squared output error of a linear needs.
struct SplitStats {
  int64_t tokens = 0;       // observed
  int64_t gram_tokens = 0;  // of these, summed in gram
  Tensor gram;  // [K, K] mean of x·xᵀ: ‖ΔW·x‖² averaged over tokens is the trace of ΔW·gram·ΔWᵀ
  Tensor cross;   // [E, K] mean of e·xᵀ over the same tokens, where rows e were given beside x
  Tensor sample;  // [S, K] input rows, evenly strided: for losses that are not quadratic in x (int8
                  // activations)
  int64_t sample_rows = 0;
};

// Of the value that one scaling group reads, K channels.
struct InputStats {
  ValueId value = -1;
  int64_t k = 0;
  Tensor mean_abs;  // [K], search split
  Tensor max_abs;   // [K], both splits
  SplitStats search, held_out;
};

// Of the sums that an observer took, means: mean_abs over the search split's tokens, gram (whose
// upper triangle alone was summed) and cross over gram_tokens. Without held-out rows the search
// split judges itself.
void finish_statistics(std::vector<InputStats>& sums);
void finish_statistics(std::vector<InputStats>& sums, ThreadPool& pool);  // the same bits

// Sums of nothing yet over a value of width `k`. `host_gram`: whether there is memory for Gram
// matrices, zeroed.
InputStats no_sums(ValueId value, int64_t k, bool host_gram = true);

// Which of `count` rows that follow those a split has seen are kept as samples (by index, at most
// as many as there is room for), and which go into its Gram matrix: rows first, first + every, …
struct ObservedRows {
  std::vector<int64_t> sampled;
  int64_t first = 0, every = 1, gram_count = 0;
};
// `expected`: rows that the split will have seen in the end.
ObservedRows observed_rows(const SplitStats& split, int64_t count, int64_t k, int64_t expected,
                           int64_t gram_tokens_per_channel);

// Contiguous rows of `width` values that go with observed rows, into `cross`.
struct BesideRows {
  const float* rows = nullptr;
  int64_t width = 0;
};

class Observer {
 public:
  // Watches the given values. `expected_rows`: rows that will come per split, to spread the sample
  // over them.
  Observer(const Graph& graph, std::span<const ScalingGroup> groups, int64_t expected_search_rows,
           int64_t expected_held_out_rows, Matmul& matmul,
           int64_t gram_tokens_per_channel = kGramTokensPerChannel);

  void observe(ValueId value, const float* rows, int64_t count, int64_t stride, Split split,
               BesideRows beside = {});
  std::vector<InputStats> finish();  // finished(take_sums())
  // As they were summed: what can be stored and merged. Ends the observation.
  std::vector<InputStats> take_sums() { return std::move(stats_); }

  static constexpr int64_t kSampleRows = 512;
  // Every n-th token goes into the gram matrix, so that at least this many per channel do where
  // there are so many: the relative error of its entries is then about 1/√(16·K), far below the
  // differences between candidates.
  static constexpr int64_t kGramTokensPerChannel = 16;

 private:
  void add_gram(const float* rows, int64_t count, int64_t stride, int64_t k, BesideRows beside,
                int64_t beside_stride, SplitStats& split);
  void transpose(const float* rows, int64_t count, int64_t stride, int64_t k, Buffer& out);

  Matmul& matmul_;
  int64_t expected_[2], tokens_per_channel_;
  std::vector<InputStats> stats_;
  std::map<ValueId, size_t> index_;
  Buffer transposed_, beside_;
};

}  // namespace whit
