#include "runtime/batch.h"

#include <algorithm>

#include "base/checked.h"

namespace whit {

void StepBatch::build(const StepPlan& plan, int64_t page_tokens) {
  ids_.clear();
  positions_.clear();
  slots_.clear();
  tails_.clear();
  context_len_.clear();
  query_start_.assign(1, 0);
  max_blocks_ = 1;
  for (const Chunk& chunk : plan.chunks)
    max_blocks_ = std::max(max_blocks_, ceil_div(chunk.start + chunk.count, page_tokens));
  block_table_.assign(plan.chunks.size() * max_blocks_, 0);
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const Chunk& chunk = plan.chunks[c];
    const Sequence& sequence = *chunk.sequence;
    const int64_t end = chunk.start + chunk.count, length = sequence.length();
    for (int64_t position = chunk.start; position < end; ++position) {
      ids_.push_back(position < length ? sequence.tokens[position]
                                       : sequence.draft[position - length]);
      positions_.push_back(static_cast<int32_t>(position));
      slots_.push_back(static_cast<int32_t>(sequence.pages[position / page_tokens] * page_tokens +
                                            position % page_tokens));
    }
    std::copy_n(sequence.pages.begin(), ceil_div(end, page_tokens),
                block_table_.begin() + static_cast<int64_t>(c) * max_blocks_);
    query_start_.push_back(static_cast<int32_t>(ids_.size()));
    context_len_.push_back(static_cast<int32_t>(end));
    tails_.push_back(static_cast<int32_t>(sequence.place));
  }
}

BatchView StepBatch::view() const {
  return {.t = static_cast<int64_t>(ids_.size()),
          .b = static_cast<int64_t>(context_len_.size()),
          .positions = positions_.data(),
          .query_start = query_start_.data(),
          .context_len = context_len_.data(),
          .block_table = block_table_.data(),
          .max_blocks = max_blocks_,
          .slots = slots_.data(),
          .tails = tails_.data()};
}

}  // namespace whit
