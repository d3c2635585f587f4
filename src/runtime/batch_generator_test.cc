#include "runtime/batch_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "engine/model.h"
#include "text_model.h"

namespace whit {
namespace {

class BatchGeneratorTest : public ::testing::Test {
 protected:
  BatchGeneratorTest() : model_(Model::open(files_.path())) {
    for (const char* text : {"Once upon a time", "x", "The weather today is"})
      prompts_.push_back(model_.tokenizer().encode(text));
  }

  std::vector<int32_t> generate(const BatchGenerationOptions& options, int64_t max_tokens,
                                int64_t max_logit_rows, int threads) {
    ThreadPool pool(threads);
    Executor executor(
        model_.config(), model_.graph(), model_.weights(),
        {.max_tokens = max_tokens, .max_context = options.length, .max_logit_rows = max_logit_rows},
        pool);
    return generate_batch(executor, prompts_, options);
  }

  TextModel files_;
  Model model_;
  std::vector<std::vector<int32_t>> prompts_;
};

TEST_F(BatchGeneratorTest, sequences_have_the_length_and_begin_with_their_prompts) {
  const BatchGenerationOptions options{.sequences = 5, .length = 24, .kv_dtype = DType::kF32};
  const std::vector<int32_t> ids = generate(options, 64, 8, 2);
  ASSERT_EQ(ids.size(), 5u * 24u);
  for (size_t i = 0; i < 5; ++i) {
    const std::vector<int32_t>& prompt = prompts_[i % prompts_.size()];
    EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), ids.begin() + i * 24)) << i;
  }
  EXPECT_GT(std::set<int32_t>(ids.begin(), ids.end()).size(), 20u);
}

TEST_F(BatchGeneratorTest, a_sequence_depends_neither_on_its_batch_nor_on_threads) {
  const BatchGenerationOptions options{
      .sequences = 6, .length = 20, .seed = 5, .kv_dtype = DType::kF32};
  const std::vector<int32_t> together = generate(options, 64, 8, 2);
  EXPECT_EQ(together, generate(options, 64, 1, 1));  // one after the other
  EXPECT_EQ(together, generate(options, 7, 8, 2));   // prompts in pieces
  BatchGenerationOptions other = options;
  other.seed = 6;
  EXPECT_NE(together, generate(other, 64, 8, 2));
}

TEST_F(BatchGeneratorTest, a_cold_model_takes_the_likeliest_token) {
  const BatchGenerationOptions options{
      .sequences = 1, .length = 20, .temperature = 1e-4, .kv_dtype = DType::kF32};
  const std::vector<int32_t> ids = generate(options, 64, 1, 1);
  ThreadPool pool(1);
  Executor executor(model_.config(), model_.graph(), model_.weights(),
                    {.max_tokens = 20, .max_context = 20, .max_logit_rows = 20}, pool);
  KvCache cache = executor.make_cache(1, 20, DType::kF32);
  const int64_t starts[] = {0}, counts[] = {20};
  executor.step(ids, ContiguousBatch(starts, counts, cache.page_tokens()).view(), cache);
  for (int32_t i = static_cast<int32_t>(prompts_[0].size()) - 1; i < 19; ++i)
    EXPECT_EQ(ids[i + 1],
              executor.ops().argmax(executor.logits({&i, 1}), model_.config().vocab_size))
        << i;
}

TEST_F(BatchGeneratorTest, an_ended_answer_is_followed_by_another_prompt) {
  BatchGenerationOptions options{.sequences = 3, .length = 64, .kv_dtype = DType::kF32};
  for (int32_t id = 0; id < model_.config().vocab_size; ++id) options.stop_ids.push_back(id);
  const std::vector<int32_t> ids = generate(options, 64, 8, 2);
  // Every drawn token ends an answer: after each prompt one token, then the next prompt.
  std::vector<int32_t> sequence(ids.begin(), ids.begin() + 64);
  size_t at = 0;
  for (size_t prompt = 0; at < sequence.size(); prompt = (prompt + 61) % prompts_.size()) {
    for (const int32_t id : prompts_[prompt]) {
      if (at == sequence.size()) break;
      EXPECT_EQ(sequence[at++], id);
    }
    ++at;
  }
}

TEST_F(BatchGeneratorTest, impossible_requests_are_refused) {
  EXPECT_THROW(generate({.sequences = 0, .length = 8}, 16, 4, 1), Error);
  EXPECT_THROW(generate({.sequences = 1, .length = 8, .temperature = 0}, 16, 4, 1), Error);
  prompts_.clear();
  EXPECT_THROW(generate({.sequences = 1, .length = 8}, 16, 4, 1), Error);
}

}  // namespace
}  // namespace whit
