#include "runtime/engine_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <numeric>

#include "runtime/grammar/compile.h"
#include "runtime/grammar/token_trie.h"
#include "text_model.h"

namespace whit {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// What a request got, all events together.
struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<float> logits, prompt_logits;
  std::vector<TokenDetail> details, prompt_details;
  int64_t tokens = 0, events = 0;
  RequestEvent end;
};

class EngineLoopTest : public ::testing::Test {
 protected:
  EngineLoopTest() : model_(Model::open(files_.path())) {}
  ~EngineLoopTest() override { loop_.reset(); }

  static EngineLoopOptions small() {
    EngineLoopOptions options;
    options.scheduler.max_sequences = 6;
    options.scheduler.max_step_tokens = 40;
    options.scheduler.max_context = 128;
    options.page_tokens = 16;
    options.kv_dtype = DType::kF32;
    return options;
  }

  void start(const EngineLoopOptions& options, Backend backend = Backend::kCpu) {
    loop_.reset();
    executor_ = std::make_unique<Executor>(
        model_.config(), model_.graph(), model_.weights(),
        ExecutorOptions{
            .max_tokens = 40, .max_context = 128, .max_logit_rows = 16, .backend = backend},
        pool_);
    loop_ = std::make_unique<EngineLoop>(model_, *executor_, options,
                                         [this](StepReport report) { take(std::move(report)); });
  }

  void take(StepReport report) {
    if (const auto act = std::exchange(after_step_, nullptr)) act();
    std::lock_guard lock(mutex_);
    for (RequestEvent& event : report.events) {
      Answer& answer = answers_[{event.id, event.choice}];
      ++answer.events;
      answer.text += event.text;
      answer.token_ids.insert(answer.token_ids.end(), event.token_ids.begin(),
                              event.token_ids.end());
      answer.logits.insert(answer.logits.end(), event.logits.begin(), event.logits.end());
      answer.tokens += std::ssize(event.token_ids);
      std::move(event.details.begin(), event.details.end(), std::back_inserter(answer.details));
      if (event.first) answer.prompt_details = std::move(event.prompt_details);
      if (event.first) answer.prompt_logits = std::move(event.prompt_logits);
      if (event.finished) answer.end = event;
      if (event.last_choice) ++done_;
    }
    drafted_ += report.drafted;
    accepted_ += std::accumulate(report.accepted_at.begin(), report.accepted_at.end(), int64_t{0});
    report.events.clear();
    last_ = std::move(report);
    changed_.notify_all();
  }

  void wait_for(int64_t requests) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return done_ >= requests; }));
  }

  Request greedy(std::string_view prompt, int64_t max_tokens) const {
    Request request;
    request.prompt = model_.tokenizer().encode(prompt);
    request.options.sampling.temperature = 0;
    request.options.max_tokens = max_tokens;
    request.options.ignore_eos = true;
    return request;
  }

  std::string alone(const Request& request, const KvFormat& kv = DType::kF32) {
    Executor executor(model_.config(), model_.graph(), model_.weights(),
                      {.max_tokens = 64, .max_context = 128, .max_logit_rows = 1}, pool_);
    Generator generator(executor, model_.tokenizer(), model_.stop_ids(), kv);
    return generator.generate(request.prompt, request.options).text;
  }

  std::string message_of(Request request) {
    try {
      loop_->submit(std::move(request));
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  TextModel files_;
  Model model_;
  ThreadPool pool_{2};
  std::unique_ptr<Executor> executor_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<RequestId, int64_t>, Answer> answers_;
  int64_t done_ = 0, drafted_ = 0, accepted_ = 0;
  StepReport last_;
  std::function<void()> after_step_;  // of the engine's thread, after its next step
  std::unique_ptr<EngineLoop> loop_;
};

// Log-probabilities bring the logits to the host, which draws from them then.
TEST_F(EngineLoopTest, a_gpu_draws_what_the_host_draws) {
  EngineLoopOptions options = small();
  options.kv_dtype = DType::kF16;
  options.page_tokens = 32;
  try {
    start(options, Backend::kCuda);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  std::vector<SamplerOptions> samplings = {
      {.temperature = 1},
      {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f},
      {.temperature = 1.2f, .min_p = 0.05f, .repetition_penalty = 1.3f},
      {.temperature = 0, .presence_penalty = 1.5f, .frequency_penalty = 0.5f},
      {.temperature = 1, .logit_bias = {{5, 4.0f}}},
  };
  const auto tokens_of_model = std::make_shared<const TokenTrie>(model_.tokenizer());
  for (size_t i = 0; i < samplings.size() + 2; ++i) {
    std::vector<std::vector<int32_t>> tokens;
    for (const int logprobs : {-1, 0}) {
      Request request = greedy("Once upon a time, in a harbour", 24);
      request.options.sampling = samplings[i % samplings.size()];
      request.options.sampling.seed = 40 + i;
      request.options.sampling.logprobs = logprobs;
      if (i >= samplings.size())
        request.grammar = compile_regex("(abc|[x-z0-9 ]){10,30}", tokens_of_model);
      const RequestId id = loop_->submit(std::move(request));
      wait_for(done_ + 1);
      tokens.push_back(answers_[{id, 0}].token_ids);
      EXPECT_GE(tokens.back().size(), 5u);
    }
    EXPECT_EQ(tokens[0], tokens[1]) << "sampling " << i;
  }
}

TEST_F(EngineLoopTest, an_answer_under_load_is_the_answer_alone) {
  std::vector<Request> requests;
  std::vector<std::string> expected;
  for (int i = 0; i < 20; ++i) {
    std::string prompt = "Once upon a time, in a harbour";
    if (i % 3 != 0) prompt += std::string(static_cast<size_t>(i) * 2, static_cast<char>('a' + i));
    requests.push_back(greedy(prompt, 12 + i * 2));
    if (i % 4 == 1) {
      requests.back().options.sampling.temperature = 1;
      requests.back().options.sampling.seed = static_cast<uint64_t>(i);
    }
    expected.push_back(alone(requests.back()));
  }
  for (const int64_t draft : {0, 3}) {
    EngineLoopOptions options = small();
    // Few pages: sequences are preempted, and come back.
    const int64_t page = model_.config().num_hidden_layers * 2 * 16 *
                         model_.config().num_key_value_heads * model_.config().head_dim * 4;
    options.cache_bytes = 9 * page;
    options.draft_tokens = draft;
    start(options);
    done_ = 0;
    answers_.clear();
    std::vector<RequestId> ids;
    for (const Request& request : requests) ids.push_back(loop_->submit(request));
    wait_for(20);
    for (size_t i = 0; i < ids.size(); ++i) {
      const Answer& answer = answers_[{ids[i], 0}];
      EXPECT_EQ(answer.text, expected[i]) << i;
      EXPECT_EQ(answer.end.error, "");
      EXPECT_EQ(answer.end.finish_reason, FinishReason::kLength);
      EXPECT_EQ(answer.tokens, requests[i].options.max_tokens);
      EXPECT_EQ(answer.end.generated_tokens, requests[i].options.max_tokens);
    }
    EXPECT_GT(last_.scheduler.preemptions, 0);
    EXPECT_GT(last_.scheduler.prefix_hits, 0);
    EXPECT_EQ(last_.pages_used, 0);
  }
  EXPECT_GT(drafted_, 0);
}

// The same answers, greedy and sampled, whatever the draft model is worth and while pages run out.
TEST_F(EngineLoopTest, a_draft_model_changes_no_answer) {
  std::vector<Request> requests;
  std::vector<std::string> expected;
  for (int i = 0; i < 12; ++i) {
    std::string prompt = "Once upon a time, in a harbour";
    if (i % 3 != 0) prompt += std::string(static_cast<size_t>(i) * 3, static_cast<char>('a' + i));
    requests.push_back(greedy(prompt, 10 + i * 3));
    if (i % 4 == 1) {
      requests.back().options.sampling.temperature = 1;
      requests.back().options.sampling.seed = static_cast<uint64_t>(i);
    }
    expected.push_back(alone(requests.back()));
  }
  TextModel other_files("qwen2");
  const Model other = Model::open(other_files.path());
  check_draft_model(other, model_, 128);
  EXPECT_THROW(check_draft_model(other, model_, 1024), Error);
  const int64_t page = model_.config().num_hidden_layers * 2 * 16 *
                       model_.config().num_key_value_heads * model_.config().head_dim * 4;
  for (const Model* guesser : {static_cast<const Model*>(&model_), &other}) {
    Executor draft(guesser->config(), guesser->graph(), guesser->weights(),
                   {.max_tokens = 46, .max_context = 128, .max_logit_rows = 4}, pool_);
    EngineLoopOptions options = small();
    options.draft = &draft;
    options.draft_kv_dtype = DType::kF32;
    options.draft_tokens = 3;
    options.cache_bytes = (guesser == &model_ ? 2 : 3) * 9 * page;
    start(options);
    done_ = drafted_ = accepted_ = 0;
    answers_.clear();
    std::vector<RequestId> ids;
    for (const Request& request : requests) ids.push_back(loop_->submit(request));
    wait_for(12);
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ((answers_[{ids[i], 0}].text), expected[i]) << i;
      EXPECT_EQ((answers_[{ids[i], 0}].end.error), "");
      EXPECT_EQ((answers_[{ids[i], 0}].tokens), requests[i].options.max_tokens);
    }
    EXPECT_EQ(last_.pages_used, 0);
    EXPECT_GT(drafted_, 0);
    // A model's own greedy guesses are right, but for sampled answers and what others cut short.
    if (guesser == &model_)
      EXPECT_GT(accepted_, drafted_ * 6 / 10);
    else
      EXPECT_LT(accepted_, drafted_ / 2);
    loop_.reset();
  }
}

TEST_F(EngineLoopTest, integer_keys_and_values_give_under_load_what_they_give_alone) {
  for (const KvFormat& kv :
       {KvFormat(KvType::kInt8), KvFormat(KvType::kInt4),
        KvFormat(KvType::kInt8, std::vector(model_.graph().layers(), KeyLayout::kChannel))}) {
    EngineLoopOptions options = small();
    options.kv_dtype = kv;
    options.page_tokens = 32;
    options.draft_tokens = 3;
    options.scheduler.max_sequences = 4;
    start(options);
    // Few pages: sequences are preempted, and come back.
    options.cache_bytes = 8 * executor_->page_bytes(kv, 32);
    start(options);
    done_ = 0;
    answers_.clear();
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    RequestId group;
    {
      // The engine cannot report its first step before all are there: none runs alone.
      std::lock_guard lock(mutex_);
      for (int i = 0; i < 8; ++i) {
        const std::string tail(static_cast<size_t>(i) * 5, static_cast<char>('a' + i));
        requests.push_back(greedy("Once upon a time, in a harbour, a grey one" + tail, 60));
        ids.push_back(loop_->submit(requests.back()));
      }
      Request several = requests[0];
      several.choices = 2;
      group = loop_->submit(several);
    }
    wait_for(9);
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ((answers_[{ids[i], 0}].text), alone(requests[i], kv)) << i << name(kv.type);
      EXPECT_EQ((answers_[{ids[i], 0}].end.error), "");
    }
    for (int64_t choice = 0; choice < 2; ++choice)
      EXPECT_EQ((answers_[{group, choice}].text), (answers_[{ids[0], 0}].text));
    EXPECT_GT(last_.scheduler.preemptions, 0);
    EXPECT_GT(last_.scheduler.prefix_hits, 0);
    EXPECT_EQ(last_.pages_used, 0);
  }
}

TEST_F(EngineLoopTest, the_pages_of_a_prompt_seen_before_are_not_computed_again) {
  start(small());
  const Request request = greedy("The quick brown fox jumps over the lazy dog by the sea.", 4);
  const RequestId cold = loop_->submit(request);
  wait_for(1);
  const RequestId warm = loop_->submit(request);
  Request salted = request;
  salted.cache_salt = "another tenant";
  const RequestId other = loop_->submit(salted);
  wait_for(3);
  EXPECT_EQ((answers_[{cold, 0}].end.cached_tokens), 0);
  EXPECT_EQ((answers_[{warm, 0}].end.cached_tokens), 48);  // three pages of the 55 tokens
  EXPECT_EQ((answers_[{other, 0}].end.cached_tokens), 0);
  EXPECT_EQ((answers_[{cold, 0}].text), (answers_[{warm, 0}].text));
}

TEST_F(EngineLoopTest, choices_differ_by_seed_and_share_the_prompt) {
  start(small());
  Request request = greedy("Tell me about the weather in the mountains today", 12);
  request.options.sampling.temperature = 1;
  request.options.sampling.seed = 7;
  request.choices = 3;
  const RequestId first = loop_->submit(request);
  request.choices = 1;
  const RequestId single = loop_->submit(request);
  wait_for(2);
  EXPECT_EQ((answers_[{first, 0}].text), (answers_[{single, 0}].text));
  EXPECT_NE((answers_[{first, 0}].text), (answers_[{first, 1}].text));
  EXPECT_NE((answers_[{first, 1}].text), (answers_[{first, 2}].text));
  for (int64_t choice = 0; choice < 3; ++choice)
    EXPECT_EQ((answers_[{first, choice}].end.generated_tokens), 12);
  EXPECT_GE((answers_[{first, 1}].end.cached_tokens), 32);
}

TEST_F(EngineLoopTest, log_probabilities_of_prompt_and_answer_are_the_models) {
  start(small());
  Request request = greedy("A grey harbour, and a very long pier in front of it; gulls.", 5);
  request.prompt_logprobs = 2;
  request.options.sampling.logprobs = 3;
  const RequestId id = loop_->submit(request);
  wait_for(1);
  const Answer& answer = answers_[{id, 0}];
  const std::vector<int32_t>& prompt = request.prompt;
  ASSERT_EQ(answer.prompt_details.size(), prompt.size() - 1);
  ASSERT_EQ(answer.details.size(), 5u);

  std::vector<int32_t> ids = prompt;
  for (const TokenDetail& detail : answer.details) ids.push_back(detail.token);
  Executor executor(model_.config(), model_.graph(), model_.weights(),
                    {.max_tokens = 128, .max_context = 128, .max_logit_rows = 1}, pool_);
  KvCache cache = executor.make_cache(1, 128, DType::kF32);
  const int64_t starts[] = {0}, counts[] = {std::ssize(ids)};
  executor.step(ids, ContiguousBatch(starts, counts, cache.page_tokens()).view(), cache);
  for (int32_t i = 0; i + 1 < std::ssize(ids); ++i) {
    const float* logits = executor.logits({&i, 1});
    const int64_t vocab = model_.config().vocab_size;
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[v]));
    const double expected = logits[ids[i + 1]] - std::log(sum);
    const bool in_prompt = i + 1 < std::ssize(prompt);
    const TokenDetail& detail =
        in_prompt ? answer.prompt_details[i] : answer.details[i + 1 - prompt.size()];
    EXPECT_EQ(detail.token, ids[i + 1]);
    EXPECT_NEAR(detail.logprob, expected, 1e-4) << i;
    ASSERT_EQ(detail.top.size(), in_prompt ? 2u : 3u);
    EXPECT_EQ(detail.top[0].token, executor.ops().argmax(logits, vocab));
  }
}

TEST_F(EngineLoopTest, a_stop_text_and_a_stop_token_end_an_answer) {
  start(small());
  const Request request = greedy("Once upon a time", 40);
  const RequestId whole = loop_->submit(request);
  wait_for(1);
  const std::string text = answers_[{whole, 0}].text;
  ASSERT_GT(text.size(), 12u);
  Request by_text = request;
  by_text.options.stop = {text.substr(6, 3)};
  const RequestId stopped = loop_->submit(by_text);
  by_text.keep_stop_text = true;
  const RequestId kept = loop_->submit(by_text);
  wait_for(3);
  const size_t at = text.find(text.substr(6, 3));
  EXPECT_EQ((answers_[{stopped, 0}].text), text.substr(0, at));
  EXPECT_EQ((answers_[{kept, 0}].text), text.substr(0, at + 3));
  EXPECT_EQ((answers_[{stopped, 0}].end.stop_reason), text.substr(6, 3));
  EXPECT_EQ((answers_[{stopped, 0}].end.finish_reason), FinishReason::kStop);
}

TEST_F(EngineLoopTest, a_cancelled_request_ends_also_within_its_prompt_and_returns_its_pages) {
  start(small());
  std::vector<RequestId> ids;
  after_step_ = [&] {
    for (const RequestId id : ids) loop_->cancel(id);
    loop_->cancel(12345);
  };
  // Six run at once, in steps of 40 tokens: after the first no prompt of 100 is done.
  loop_->exclusively([&] {
    for (int i = 0; i < 12; ++i)
      ids.push_back(loop_->submit(greedy(std::string(100, static_cast<char>('a' + i)), 27)));
  });
  wait_for(12);
  for (const RequestId id : ids)
    EXPECT_EQ((answers_[{id, 0}].end.finish_reason), FinishReason::kCancelled);
  const RequestId after = loop_->submit(greedy("And then", 3));
  wait_for(13);
  EXPECT_EQ((answers_[{after, 0}].end.generated_tokens), 3);
  EXPECT_EQ(last_.pages_used, 0);
}

TEST_F(EngineLoopTest, an_embedding_is_a_unit_vector_that_depends_on_the_text_alone) {
  start(small());
  Request request = greedy(std::string(90, 'x') + "grey", 1);
  request.embedding = true;
  const RequestId first = loop_->submit(request), again = loop_->submit(request);
  Request other = greedy("something else", 1);
  other.embedding = true;
  const RequestId third = loop_->submit(other);
  wait_for(3);
  const std::vector<float> vector = answers_[{first, 0}].end.embedding;
  ASSERT_EQ(std::ssize(vector), model_.config().hidden_size);
  double norm = 0;
  for (const float value : vector) norm += static_cast<double>(value) * value;
  EXPECT_NEAR(norm, 1, 1e-5);
  EXPECT_THAT((answers_[{again, 0}].end.embedding), ElementsAreArray(vector));
  EXPECT_NE((answers_[{third, 0}].end.embedding), vector);
}

TEST_F(EngineLoopTest, a_request_brings_the_logits_that_it_was_answered_from) {
  start(small());
  Request request = greedy("Once upon a time, in a harbour", 6);
  request.logits = request.prompt_logits = true;
  request.choices = 2;
  const RequestId id = loop_->submit(request), beside = loop_->submit(greedy("Once upon", 20));
  wait_for(2);
  const int64_t vocab = model_.config().vocab_size;
  EXPECT_TRUE((answers_[{beside, 0}].logits.empty()));
  EXPECT_TRUE((answers_[{id, 1}].prompt_logits.empty()));
  EXPECT_EQ((answers_[{id, 1}].logits), (answers_[{id, 0}].logits));
  const Answer& answer = answers_[{id, 0}];

  // The same rows, computed alone.
  Executor executor(model_.config(), model_.graph(), model_.weights(),
                    {.max_tokens = 64, .max_context = 128, .max_logit_rows = 64}, pool_);
  KvCache cache = executor.make_cache(1, 64, DType::kF32);
  std::vector<int32_t> ids = request.prompt;
  ids.insert(ids.end(), answer.token_ids.begin(), answer.token_ids.end());
  const int64_t starts[] = {0}, counts[] = {std::ssize(ids)};
  const ContiguousBatch batch(starts, counts, cache.page_tokens());
  executor.step(ids, batch.view(), cache);
  std::vector<int32_t> rows(ids.size());
  std::iota(rows.begin(), rows.end(), 0);
  const float* expected = executor.logits(rows);
  const int64_t prompt = std::ssize(request.prompt);
  ASSERT_EQ(std::ssize(answer.prompt_logits), prompt * vocab);
  ASSERT_EQ(std::ssize(answer.logits), 6 * vocab);
  EXPECT_TRUE(std::equal(answer.prompt_logits.begin(), answer.prompt_logits.end(), expected));
  EXPECT_TRUE(
      std::equal(answer.logits.begin(), answer.logits.end(), expected + (prompt - 1) * vocab));
}

TEST_F(EngineLoopTest, visitors_have_the_executor_for_themselves_and_answers_go_on_between_them) {
  start(small());
  const Request request = greedy("Once upon a time", 80);
  const std::string expected = alone(request);
  const RequestId id = loop_->submit(request);
  std::vector<std::thread> visitors;
  std::atomic<int> inside{0}, visits{0};
  for (int i = 0; i < 3; ++i)
    visitors.emplace_back([&] {
      for (bool done = false; !done;) {
        loop_->exclusively([&] {
          EXPECT_EQ(++inside, 1);
          ++visits;
          // Throws where a step runs at the same time.
          pool_.run([](const Worker&) {});
          --inside;
        });
        const std::lock_guard lock(mutex_);
        done = done_ == 1;
      }
    });
  wait_for(1);
  for (std::thread& visitor : visitors) visitor.join();
  EXPECT_EQ((answers_[{id, 0}].text), expected);
  EXPECT_THROW(loop_->exclusively([] { throw Error(ErrorKind::kIo, "mine"); }), Error);
  loop_->submit(greedy("x", 2));
  wait_for(2);
}

TEST_F(EngineLoopTest, what_cannot_be_served_is_refused_before_it_waits) {
  EngineLoopOptions options = small();
  options.max_queue = 2;
  start(options);
  EXPECT_THAT(message_of(greedy("", 4)), HasSubstr("no tokens"));
  EXPECT_THAT(message_of(greedy(std::string(128, 'x'), 4)), HasSubstr("128 tokens"));
  Request unknown = greedy("x", 4);
  unknown.prompt[0] = 100000;
  EXPECT_THAT(message_of(unknown), HasSubstr("vocabulary"));
  Request many = greedy("x", 4);
  many.choices = 9;
  EXPECT_THAT(message_of(many), HasSubstr("9 choices"));
  EXPECT_THAT(message_of(greedy("x", 0)), HasSubstr("max_tokens"));
  Request hot = greedy("x", 4);
  hot.options.sampling.temperature = -1;
  EXPECT_THAT(message_of(hot), HasSubstr("temperature"));
  int accepted = 0;
  std::string refusal;
  for (int i = 0; i < 200 && refusal.empty(); ++i) {
    const std::string message = message_of(greedy("Once upon a time", 100));
    if (message == "no error")
      ++accepted;
    else
      refusal = message;
  }
  EXPECT_GE(accepted, 8);
  EXPECT_THAT(refusal, HasSubstr("queue is full"));
}

}  // namespace
}  // namespace whit
