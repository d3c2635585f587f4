#include "whit/llm_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "text_model.h"
#include "whit/quantize.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class LLMEngineTest : public ::testing::Test {
 protected:
  BuildConfig config(const std::string& engine = "") const {
    return {.calib_samples = 4,
            .calib_length = 32,
            .group_size = 32,
            .engine_dir = engine.empty() ? "" : files_.folder() / engine,
            .threads = 1};
  }
  template <typename Body>
  std::string message_of(Body body) const {
    try {
      body();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  }

  TextModel files_;
};

TEST_F(LLMEngineTest, quantizes_builds_and_answers) {
  LLMEngine engine =
      LLMEngine::from_pretrained(files_.path(), QuantMode::AWQ,
                                 {.weight_dtype = "int4", .activation_dtype = "int8"}, config("e"));
  EXPECT_EQ(engine.path(), files_.folder() / "e");
  const std::vector<std::string> prompts = {"Once upon", "x"};
  const std::vector<RequestOutput> outputs =
      engine.generate(prompts, {.max_tokens = 6, .temperature = 0, .ignore_eos = true});
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].prompt, "Once upon");
  EXPECT_EQ(outputs[0].prompt_token_ids.size(), 9u);
  EXPECT_EQ(outputs[0].outputs.at(0).token_ids.size(), 6u);
  EXPECT_EQ(outputs[0].outputs.at(0).finish_reason, "length");

  const ChatMessage message{"user", "Hello"};
  const RequestOutput answer =
      engine.chat({&message, 1}, {.max_tokens = 3, .temperature = 0, .ignore_eos = true});
  EXPECT_EQ(answer.prompt, "<|turn|>user\nHello</s>\n<|turn|>assistant\n");
  EXPECT_EQ(answer.outputs.at(0).token_ids.size(), 3u);
  EXPECT_EQ(engine.config().num_hidden_layers, 3);
}

TEST_F(LLMEngineTest, an_engine_is_built_once_and_again_where_it_is_damaged) {
  const auto build = [&] {
    return build_engine(files_.path(), QuantMode::SMOOTHQUANT, {}, config("e"));
  };
  EXPECT_FALSE(build().reused);
  const BuildReport report = build();
  EXPECT_TRUE(report.reused);
  EXPECT_GT(report.engine_bytes, 0);
  write_file(report.engine_dir / "weights.safetensors", "");
  EXPECT_FALSE(build().reused);
  EXPECT_TRUE(build().reused);
}

TEST_F(LLMEngineTest, an_engine_runs_as_it_is_or_as_what_it_is_and_as_nothing_else) {
  const BuildReport report = build_engine(files_.path(), QuantMode::RTN, {}, config("e"));
  EXPECT_EQ(LLMEngine::from_pretrained(report.engine_dir).path(), report.engine_dir);
  EXPECT_NO_THROW(LLMEngine::from_pretrained(report.engine_dir, QuantMode::RTN, {"int8", "fp16"}));
  EXPECT_THAT(message_of([&] { LLMEngine::from_pretrained(report.engine_dir, QuantMode::AWQ); }),
              HasSubstr("made with mode rtn and scheme w8a16"));
}

TEST_F(LLMEngineTest, bad_settings_are_refused_before_any_work) {
  const auto build = [&](QuantMode mode, const QuantPolicy& policy, const BuildConfig& settings) {
    return message_of([&] { build_engine(files_.path(), mode, policy, settings); });
  };
  EXPECT_THAT(build(QuantMode::NONE, {}, config("e")), HasSubstr("builds no engine"));
  EXPECT_THAT(build(QuantMode::SMOOTHQUANT, {"int8", "fp16"}, config("e")), HasSubstr("possible"));
  BuildConfig wrong = config("e");
  wrong.group_size = 48;
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("group size 48"));
  wrong = config("e");
  wrong.head = "int2";
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("int2"));
  wrong = config("e");
  wrong.calib_samples = 0;
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("--calib-samples"));
  wrong = config("e");
  wrong.calib = (files_.folder() / "nowhere.txt").string();
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("nowhere.txt does not exist"));
  wrong = config("e");
  wrong.isa = "sse";
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("avx2"));
  wrong = config("e");
  wrong.backend = "tpu";
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("cpu, cuda"));
  wrong = config("e");
  wrong.threads = -1;
  EXPECT_THAT(build(QuantMode::AWQ, {}, wrong), HasSubstr("threads"));
  EXPECT_FALSE(std::filesystem::exists(files_.folder() / "e"));
  EXPECT_THAT(message_of([&] {
                LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {"int4", "int8"});
              }),
              HasSubstr("not possible"));
}

TEST_F(LLMEngineTest, sampling_parameters_are_checked_request_by_request) {
  LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, config());
  EXPECT_THAT(message_of([&] { engine.generate("x", {.temperature = -1}); }),
              HasSubstr("temperature"));
  EXPECT_THAT(message_of([&] { engine.generate("x", {.top_p = 0}); }), HasSubstr("top_p"));
  EXPECT_THAT(message_of([&] { engine.generate("x", {.max_tokens = 0}); }),
              HasSubstr("max_tokens"));
  EXPECT_THAT(message_of([&] { engine.generate("x", {.stop = {""}}); }), HasSubstr("stop"));
  EXPECT_THAT(message_of([&] { engine.generate("", {}); }), HasSubstr("no tokens"));
  const SamplingParams seeded{.max_tokens = 8, .seed = 3, .ignore_eos = true};
  EXPECT_EQ(engine.generate("x", seeded).outputs[0].token_ids,
            engine.generate("x", seeded).outputs[0].token_ids);
}

// All updates of a request put together.
struct Received {
  std::mutex mutex;
  std::condition_variable changed;
  CompletionOutput output;
  int64_t updates = 0, batch_size = 0;
  bool done = false;

  void take(const RequestUpdate& update) {
    const std::lock_guard lock(mutex);
    ++updates;
    output.text += update.text;
    output.token_ids.insert(output.token_ids.end(), update.token_ids.begin(),
                            update.token_ids.end());
    output.finish_reason = update.finish_reason;
    batch_size = update.batch_size;
    done = update.last;
    changed.notify_all();
  }
  bool wait(int64_t for_updates = 1 << 30) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(60),
                            [&] { return done || updates >= for_updates; });
  }
};

TEST_F(LLMEngineTest, requests_submitted_together_share_steps_and_answer_as_alone) {
  LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, config());
  const SamplingParams params{.max_tokens = 30, .temperature = 0, .ignore_eos = true};
  const std::vector<std::string> prompts = {"Once upon", "a time there was a harbour", "x"};
  std::vector<RequestOutput> alone;
  for (const std::string& prompt : prompts) alone.push_back(engine.generate(prompt, params));
  const std::vector<RequestOutput> listed = engine.generate(prompts, params);

  std::vector<Received> received(prompts.size());
  std::promise<void> all_submitted;
  std::shared_future<void> gate = all_submitted.get_future().share();
  for (size_t i = 0; i < prompts.size(); ++i)
    engine.submit(engine.encode(prompts[i]), params, [&, i, gate](const RequestUpdate& update) {
      gate.wait();  // the first step ends when all are there
      received[i].take(update);
    });
  all_submitted.set_value();
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_TRUE(received[i].wait());
    EXPECT_EQ(received[i].output.token_ids, alone[i].outputs[0].token_ids);
    EXPECT_EQ(received[i].output.text, alone[i].outputs[0].text);
    EXPECT_EQ(received[i].batch_size, 3);
    EXPECT_EQ(listed[i].outputs[0].token_ids, alone[i].outputs[0].token_ids);
  }
}

TEST_F(LLMEngineTest, a_cancelled_request_ends_and_the_others_do_not) {
  LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, config());
  const SamplingParams params{.max_tokens = 100, .temperature = 0, .ignore_eos = true};
  const RequestOutput expected = engine.generate("Once upon", params);
  Received kept, cancelled;
  engine.submit(engine.encode("Once upon"), params, [&](const auto& each) { kept.take(each); });
  std::atomic<uint64_t> id{0};
  id = engine.submit(engine.encode("Once upon"), params, [&](const RequestUpdate& update) {
    cancelled.take(update);
    while (id == 0) std::this_thread::yield();
    engine.cancel(id);
  });
  ASSERT_TRUE(kept.wait());
  ASSERT_TRUE(cancelled.wait());
  EXPECT_EQ(cancelled.output.finish_reason, "cancelled");
  EXPECT_EQ(cancelled.output.token_ids.size(), 1u);
  EXPECT_EQ(kept.output.token_ids, expected.outputs[0].token_ids);
  engine.cancel(id);
  engine.cancel(12345);
}

TEST_F(LLMEngineTest, n_answers_are_seeded_one_after_the_other) {
  LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, config());
  SamplingParams params{.max_tokens = 8, .seed = 5, .ignore_eos = true, .n = 3};
  const RequestOutput together = engine.generate("x", params);
  ASSERT_EQ(together.outputs.size(), 3u);
  params.n = 1;
  for (const CompletionOutput& output : together.outputs) {
    EXPECT_EQ(engine.generate("x", params).outputs[0].token_ids, output.token_ids);
    ++*params.seed;
  }
  params.n = 0;
  EXPECT_THAT(message_of([&] { engine.generate("x", params); }), HasSubstr("n is 0"));
}

// While requests run, and though the rows of a step and of logits() differ.
TEST_F(LLMEngineTest, logits_are_the_same_beside_requests_and_of_a_request) {
  LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, config());
  const std::vector<int32_t> ids = engine.encode("Once upon a time");
  const Array expected = engine.logits(ids);
  Received beside;
  engine.submit(ids, {.max_tokens = 100, .temperature = 0, .ignore_eos = true},
                [&](const RequestUpdate& update) { beside.take(update); });
  ASSERT_TRUE(beside.wait(2));
  EXPECT_EQ(engine.logits(ids).values, expected.values);
  const std::vector<std::string> taps = {"model.norm.output"};
  EXPECT_EQ(engine.taps(ids, taps).size(), 1u);
  const RequestOutput output = engine.generate(ids,
                                               {.max_tokens = 3,
                                                .temperature = 0,
                                                .return_generation_logits = true,
                                                .return_context_logits = true},
                                               {});
  EXPECT_EQ(output.context_logits.shape, expected.shape);
  EXPECT_EQ(output.context_logits.values, expected.values);
  ASSERT_TRUE(beside.wait());
}

TEST_F(LLMEngineTest, logits_and_taps_keep_keys_and_values_as_requests_do) {
  std::map<std::string, std::vector<float>> seen;
  for (const std::string dtype : {"f32", "bf16", "int8"}) {
    BuildConfig build = config();
    build.kv_cache_dtype = dtype;
    LLMEngine engine = LLMEngine::from_pretrained(files_.path(), QuantMode::NONE, {}, build);
    const std::vector<int32_t> ids = engine.encode("Once upon a time, at the end of a long road");
    const RequestOutput output = engine.generate(
        ids, {.max_tokens = 1, .temperature = 0, .return_context_logits = true}, {});
    EXPECT_EQ(engine.logits(ids).values, output.context_logits.values) << dtype;
    const std::vector<std::string> taps = {"model.norm.output"};
    seen[dtype] = engine.taps(ids, taps).at(taps[0]).values;
  }
  EXPECT_NE(seen["f32"], seen["bf16"]);
  EXPECT_NE(seen["f32"], seen["int8"]);
}

TEST_F(LLMEngineTest, the_public_config_is_read_from_config_json) {
  const PretrainedConfig config = PretrainedConfig::from_json_file(files_.path() / "config.json");
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.vocab_size, 320);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_THAT(message_of([&] { PretrainedConfig::from_json_file(files_.path() / "nothing.json"); }),
              HasSubstr("nothing.json"));
}

}  // namespace
}  // namespace whit
