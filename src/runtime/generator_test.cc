#include "runtime/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "engine/model.h"
#include "text_model.h"

namespace whit {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class GeneratorTest : public ::testing::Test {
 protected:
  GeneratorTest() : model_(Model::open(files_.path())) {
    prompt_ = model_.tokenizer().encode("Once upon a time there was a grey harbour");
  }

  std::unique_ptr<Executor> executor(int64_t max_tokens, int64_t max_context = 128) {
    return std::make_unique<Executor>(
        model_.config(), model_.graph(), model_.weights(),
        ExecutorOptions{.max_tokens = max_tokens, .max_context = max_context, .max_logit_rows = 1},
        pool_);
  }
  Generator generator(Executor& executor) {
    return Generator(executor, model_.tokenizer(), model_.stop_ids(), DType::kF32);
  }
  static GenerationOptions greedy(int64_t max_tokens) {
    GenerationOptions options;
    options.sampling.temperature = 0;
    options.max_tokens = max_tokens;
    options.ignore_eos = true;
    return options;
  }

  TextModel files_;
  Model model_;
  ThreadPool pool_{2};
  std::vector<int32_t> prompt_;
};

TEST_F(GeneratorTest, greedy_tokens_are_the_argmax_of_every_step) {
  const auto executor = this->executor(64);
  const Generation result = generator(*executor).generate(prompt_, greedy(20));

  std::vector<int32_t> ids = prompt_, expected;
  while (expected.size() < 20) {
    KvCache cache = executor->make_cache(1, 64 + 64, DType::kF32);
    const int64_t starts[] = {0}, counts[] = {static_cast<int64_t>(ids.size())};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    executor->step(ids, batch.view(), cache);
    const int32_t last = static_cast<int32_t>(ids.size()) - 1;
    expected.push_back(static_cast<int32_t>(
        executor->ops().argmax(executor->logits({&last, 1}), model_.config().vocab_size)));
    ids.push_back(expected.back());
  }
  EXPECT_THAT(result.token_ids, ElementsAreArray(expected));
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);
  EXPECT_EQ(result.prompt_tokens, static_cast<int64_t>(prompt_.size()));
}

TEST_F(GeneratorTest, a_prompt_in_chunks_gives_what_it_gives_whole) {
  const auto whole = executor(64), chunks = executor(5);
  EXPECT_EQ(generator(*whole).generate(prompt_, greedy(16)).token_ids,
            generator(*chunks).generate(prompt_, greedy(16)).token_ids);
}

TEST_F(GeneratorTest, a_conversation_computes_only_what_is_new) {
  const auto executor = this->executor(64);
  Generator kept = generator(*executor);
  const Generation first = kept.generate(prompt_, greedy(8));
  EXPECT_EQ(first.reused_tokens, 0);

  std::vector<int32_t> longer = prompt_;
  longer.insert(longer.end(), first.token_ids.begin(), first.token_ids.end());
  const std::vector<int32_t> question = model_.tokenizer().encode(" and then");
  longer.insert(longer.end(), question.begin(), question.end());
  const Generation second = kept.generate(longer, greedy(8));
  // The answer's last token was drawn, not yet computed.
  EXPECT_EQ(second.reused_tokens, static_cast<int64_t>(prompt_.size()) + 7);
  EXPECT_EQ(second.token_ids, generator(*executor).generate(longer, greedy(8)).token_ids);

  // Another text, and the very same one, are computed right as well.
  EXPECT_EQ(kept.generate(question, greedy(8)).token_ids,
            generator(*executor).generate(question, greedy(8)).token_ids);
  EXPECT_EQ(kept.generate(prompt_, greedy(8)).token_ids, first.token_ids);
  const Generation again = kept.generate(prompt_, greedy(8));
  EXPECT_EQ(again.reused_tokens, static_cast<int64_t>(prompt_.size()) - 1);
  EXPECT_EQ(again.token_ids, first.token_ids);
}

TEST_F(GeneratorTest, a_conversation_over_integer_keys_and_values_goes_on_from_whole_blocks) {
  const auto executor = this->executor(64);
  for (const KvType type : {KvType::kInt8, KvType::kInt4}) {
    const auto fresh = [&] {
      return Generator(*executor, model_.tokenizer(), model_.stop_ids(), type);
    };
    Generator kept = fresh();
    const Generation first = kept.generate(prompt_, greedy(30));
    std::vector<int32_t> longer = prompt_;
    longer.insert(longer.end(), first.token_ids.begin(), first.token_ids.begin() + 20);
    longer.push_back(prompt_[0]);
    const Generation second = kept.generate(longer, greedy(8));
    const auto same = static_cast<int64_t>(prompt_.size()) + 20;
    EXPECT_EQ(second.reused_tokens, type == KvType::kInt4 ? same / 32 * 32 : same);
    EXPECT_EQ(second.token_ids, fresh().generate(longer, greedy(8)).token_ids);
  }
}

TEST_F(GeneratorTest, an_end_of_sequence_token_stops_unless_it_is_ignored) {
  const auto executor = this->executor(64);
  const Generation free_run = generator(*executor).generate(prompt_, greedy(16));
  const int32_t stop = free_run.token_ids[5];
  const auto first = std::find(free_run.token_ids.begin(), free_run.token_ids.end(), stop);

  Generator stopping(*executor, model_.tokenizer(), {stop}, DType::kF32);
  GenerationOptions options = greedy(16);
  EXPECT_EQ(stopping.generate(prompt_, options).token_ids, free_run.token_ids);
  options.ignore_eos = false;
  const Generation stopped = stopping.generate(prompt_, options);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_THAT(stopped.token_ids, ElementsAreArray(free_run.token_ids.begin(), first + 1));
  EXPECT_EQ(stopped.text,
            model_.tokenizer().decode({free_run.token_ids.data(),
                                       static_cast<size_t>(first - free_run.token_ids.begin())},
                                      true));
}

TEST_F(GeneratorTest, streamed_pieces_are_the_text) {
  const auto executor = this->executor(64);
  std::string streamed;
  const Generation result = generator(*executor).generate(
      prompt_, greedy(40), {.on_text = [&](std::string_view piece) { streamed += piece; }});
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.text, model_.tokenizer().decode(result.token_ids, true));
}

TEST_F(GeneratorTest, a_cancelled_answer_keeps_what_it_has) {
  const auto executor = this->executor(64);
  int steps = 0;
  const Generation result = generator(*executor).generate(
      prompt_, greedy(40), {.cancelled = [&] { return ++steps > 4; }});
  EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(result.token_ids.size(), 4u);  // one poll before the prompt, one after every token
}

TEST_F(GeneratorTest, the_context_bounds_prompt_and_answer) {
  const auto executor = this->executor(64, /*max_context=*/48);
  Generator limited = generator(*executor);
  const Generation result = limited.generate(prompt_, greedy(1000));
  EXPECT_EQ(result.token_ids.size(), 48 - prompt_.size());
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);

  const auto message_of = [&](std::span<const int32_t> prompt, const GenerationOptions& options) {
    try {
      limited.generate(prompt, options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::vector<int32_t> full(48, 10);
  EXPECT_THAT(message_of(full, greedy(1)), HasSubstr("48 tokens"));
  EXPECT_THAT(message_of({}, greedy(1)), HasSubstr("no tokens"));
  EXPECT_THAT(message_of(prompt_, greedy(0)), HasSubstr("max_tokens"));
  const std::vector<int32_t> unknown = {1000};
  EXPECT_THAT(message_of(unknown, greedy(1)), HasSubstr("vocabulary"));
  EXPECT_EQ(limited.generate(prompt_, greedy(4)).token_ids.size(), 4u);  // and it goes on working
}

}  // namespace
}  // namespace whit
