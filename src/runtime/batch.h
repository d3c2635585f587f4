// A step's tokens and ragged metadata for the executor, from the scheduler's plan. Its memory is
// kept from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"
#include "runtime/sequence.h"

namespace whit {

class StepBatch {
 public:
  void build(const StepPlan& plan, int64_t page_tokens);
  std::span<const int32_t> ids() const { return ids_; }
  BatchView view() const;
  // The row of chunk i's first token.
  int32_t first_row(size_t chunk) const { return query_start_[chunk]; }

 private:
  std::vector<int32_t> ids_, positions_, query_start_, context_len_, block_table_, slots_, tails_;
  int64_t max_blocks_ = 0;
};

}  // namespace whit
