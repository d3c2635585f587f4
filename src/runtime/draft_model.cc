#include "runtime/draft_model.h"

#include <algorithm>

namespace whit {

DraftModel::DraftModel(Executor& executor, int64_t pages, int64_t page_tokens,
                       const KvFormat& kv_dtype)
    : executor_(executor), cache_(executor.make_cache(pages, page_tokens, kv_dtype)) {}

void DraftModel::run(int64_t vocab) {
  guesses_.clear();
  if (chunks_.chunks.empty()) return;
  batch_.build(chunks_, cache_.page_tokens());
  // Tables may be padded differently; what is there beyond the tokenizer means nothing.
  ids_.assign(batch_.ids().begin(), batch_.ids().end());
  for (int32_t& id : ids_) id = id < executor_.config().vocab_size ? id : 0;
  executor_.step(ids_, batch_.view(), cache_);
  const auto flush = [&] {
    const size_t before = guesses_.size();
    guesses_.resize(before + rows_.size());
    executor_.argmax(rows_, std::span(guesses_).subspan(before));
    for (size_t i = before; i < guesses_.size(); ++i)
      if (guesses_[i] >= vocab) guesses_[i] = 0;
    rows_.clear();
  };
  for (size_t c = 0; c < chunks_.chunks.size(); ++c) {
    const Chunk& chunk = chunks_.chunks[c];
    if (!chunk.samples) continue;
    if (std::ssize(rows_) == executor_.options().max_logit_rows) flush();
    rows_.push_back(static_cast<int32_t>(batch_.first_row(c) + chunk.count - 1));
  }
  if (!rows_.empty()) flush();
}

void DraftModel::propose(const StepPlan& plan, int64_t vocab) {
  chunks_.chunks.clear();
  for (const Chunk& chunk : plan.chunks) {
    Sequence& sequence = *chunk.sequence;
    if (!sequence.drafted) continue;
    // Of a draft that was right to its end, the last token has not been through this model.
    const int64_t start = chunk.start - (chunk.start > 0 ? sequence.draft_missing : 0);
    const int64_t end = chunk.start + chunk.count - chunk.drafts;
    sequence.draft_missing = 0;
    chunks_.chunks.push_back({&sequence, start, end - start, 0, chunk.drafts > 0});
  }
  run(vocab);
  std::vector<Sequence*> guessing;
  for (const Chunk& chunk : chunks_.chunks)
    if (chunk.samples) guessing.push_back(chunk.sequence);
  for (int64_t guess = 0; !guessing.empty(); ++guess) {
    for (size_t i = 0; i < guessing.size(); ++i) guessing[i]->draft[guess] = guesses_[i];
    std::erase_if(guessing, [&](const Sequence* sequence) {
      return guess + 1 >= std::ssize(sequence->draft);
    });
    chunks_.chunks.clear();
    for (Sequence* sequence : guessing)
      chunks_.chunks.push_back({sequence, sequence->length() + guess, 1, 0, true});
    run(vocab);
  }
}

void DraftModel::accept(const StepPlan& plan, std::span<const int64_t> accepted) {
  for (size_t c = 0; c < plan.chunks.size(); ++c)
    if (plan.chunks[c].drafts > 0 && accepted[c] == plan.chunks[c].drafts)
      plan.chunks[c].sequence->draft_missing = 1;
}

void check_draft_model(const Model& draft, const Model& target, int64_t context) {
  if (draft.config().max_position_embeddings < context)
    throw Error(ErrorKind::kInvalidArgument,
                "the draft model {} was trained for {} tokens, but the context is {}; lower it",
                draft.description(), draft.config().max_position_embeddings, context);
  const Tokenizer &ours = draft.tokenizer(), &theirs = target.tokenizer();
  const int64_t size = std::max(ours.vocab_size(), theirs.vocab_size());
  for (int64_t i = 0; i < size; ++i) {
    const auto id = static_cast<int32_t>(i);
    if (ours.token(id) != theirs.token(id))
      throw Error(ErrorKind::kInvalidArgument,
                  "the draft model {} must have the tokens of {}: token {} is '{}' here and '{}' "
                  "there",
                  draft.description(), target.description(), id, ours.token(id), theirs.token(id));
  }
}

}  // namespace whit
