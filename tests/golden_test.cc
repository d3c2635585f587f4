// What Hugging Face transformers computed in FP32 with tiny random models of each architecture and
// with the default model, against this engine in FP32 (scripts/make_arch_goldens.py and
// make_smol_golden.py wrote tests/golden).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/file.h"
#include "engine/executor.h"
#include "engine/model.h"

namespace whit {
namespace {

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(WHIT_SOURCE_DIR) / "tests/golden" / name;
}

Json expected_values(const std::string& name) {
  const std::filesystem::path path = golden(name) / "expected.json";
  return parse_json(read_file(path), path.string());
}

float largest(std::span<const float> values) {
  float result = 0;
  for (const float value : values) result = std::max(result, std::abs(value));
  return result;
}

// First-order bound of FP32 rounding: every value on the path to an output is a sum of at most
// `terms` products, each rounded, relative to the largest output.
float tolerance(const ModelConfig& config, int64_t layers, int64_t tokens,
                std::span<const float> reference) {
  const int64_t attention = config.num_attention_heads * config.head_dim;
  const int64_t layer_terms = 2 * config.hidden_size + attention + config.head_dim + tokens +
                              config.hidden_size + config.intermediate_size;
  const int64_t terms = layers * layer_terms + 2 * config.hidden_size;
  return static_cast<float>(terms) * std::numeric_limits<float>::epsilon() * largest(reference);
}

void expect_close(std::span<const float> values, const std::vector<float>& reference, float bound,
                  const std::string& what) {
  ASSERT_EQ(values.size(), reference.size()) << what;
  float worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const float difference = std::abs(values[i] - reference[i]);
    if (!(difference <= worst)) worst = difference, at = i;
  }
  EXPECT_LE(worst, bound) << what << ", value " << at << ": " << values[at] << ", not "
                          << reference[at];
}

// A model with an executor and the cache of one sequence, fed step by step.
class Runner {
 public:
  Runner(const std::filesystem::path& path, cpu::Isa isa, int64_t context)
      : model_(Model::open(path)),
        executor_(model_.config(), model_.graph(), model_.weights(),
                  {.max_tokens = context, .max_context = context, .isa = isa}, pool_),
        cache_(executor_.make_cache(1, context, DType::kF32)) {}

  // Appends ids to the sequence; the logits of the last one.
  std::span<const float> feed(std::span<const int32_t> ids) {
    const int64_t starts[] = {length_}, counts[] = {static_cast<int64_t>(ids.size())};
    const ContiguousBatch batch(starts, counts, cache_.page_tokens());
    executor_.step(ids, batch.view(), cache_);
    length_ += counts[0];
    const int32_t last[] = {static_cast<int32_t>(counts[0] - 1)};
    return {executor_.logits(last), static_cast<size_t>(config().vocab_size)};
  }

  // `count` greedy tokens after logits.
  std::vector<int32_t> greedy(std::span<const float> logits, size_t count) {
    std::vector<int32_t> ids;
    while (ids.size() < count) {
      ids.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      logits = feed({&ids.back(), 1});
    }
    return ids;
  }

  const Model& model() const { return model_; }
  const ModelConfig& config() const { return model_.config(); }
  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_{2};
  Model model_;
  Executor executor_;
  KvCache cache_;
  int64_t length_ = 0;
};

struct Case {
  const char* model;
  cpu::Isa isa;
};

class Architectures : public testing::TestWithParam<Case> {
 protected:
  const std::filesystem::path path_ = golden(GetParam().model);
  const Json expected_ = expected_values(GetParam().model);
  const std::vector<int32_t> ids_ = expected_["input_ids"];
};

constexpr int64_t kContext = 48;

TEST_P(Architectures, residual_stream_equals_transformers_after_every_layer) {
  Runner runner(path_, GetParam().isa, kContext);
  const ModelConfig& config = runner.config();
  const Graph& graph = runner.model().graph();
  const auto t = static_cast<int64_t>(ids_.size());
  const RopeTables rope = rope_tables(config, kContext);
  for (int64_t layer = 0; layer <= config.num_hidden_layers; ++layer) {
    // Nodes up to the end of layer `layer - 1`; the embedding alone at first.
    const NodeId end =
        layer == 0 ? graph.layer(0).begin : graph.layer(static_cast<int>(layer - 1)).end;
    const NodeRange range{graph.body().begin, end};
    KvCache cache(graph, range, DType::kF32, 1, kContext);
    Program program(graph, range, runner.model().weights(),
                    {.max_tokens = kContext, .isa = GetParam().isa}, runner.pool());
    const int64_t starts[] = {0}, counts[] = {t};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    const float* rows =
        program.run({.ids = ids_.data(), .batch = batch.view(), .rope = &rope, .cache = &cache});
    const std::vector<float> reference = expected_["hidden_last"][layer];
    expect_close({rows + (t - 1) * config.hidden_size, static_cast<size_t>(config.hidden_size)},
                 reference, tolerance(config, layer, t, reference),
                 fmt::format("residual stream after {} layers", layer));
    double squares = 0;
    for (int64_t i = 0; i < t * config.hidden_size; ++i) squares += double{rows[i]} * rows[i];
    const double norm = expected_["hidden_norms"][layer];
    EXPECT_NEAR(std::sqrt(squares), norm, norm * tolerance(config, layer, t, {{1.0f}}));
  }
}

TEST_P(Architectures, logits_equal_transformers) {
  Runner runner(path_, GetParam().isa, kContext);
  const std::vector<float> reference = expected_["logits_last"];
  expect_close(
      runner.feed(ids_), reference,
      tolerance(runner.config(), runner.config().num_hidden_layers, std::ssize(ids_), reference),
      "logits");
}

TEST_P(Architectures, logits_do_not_depend_on_how_the_prompt_is_cut_into_steps) {
  Runner whole(path_, GetParam().isa, kContext), cut(path_, GetParam().isa, kContext);
  const std::span<const int32_t> ids = ids_;
  const std::span<const float> reference = whole.feed(ids);
  cut.feed(ids.first(10));
  cut.feed(ids.subspan(10, 1));
  const std::span<const float> logits = cut.feed(ids.subspan(11));
  expect_close(
      logits, {reference.begin(), reference.end()},
      tolerance(whole.config(), whole.config().num_hidden_layers, std::ssize(ids), reference),
      "logits");
}

TEST_P(Architectures, greedy_continuation_through_the_cache_equals_transformers) {
  Runner runner(path_, GetParam().isa, kContext);
  const std::vector<int32_t> reference = expected_["greedy_ids"];
  EXPECT_EQ(runner.greedy(runner.feed(ids_), reference.size()), reference);
}

constexpr cpu::Isa kIsas[] = {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512};

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const char* model : {"llama_untied", "llama_rope_llama3", "llama_rope_linear", "mistral",
                            "mistral_window", "qwen2"})
    for (const cpu::Isa isa : kIsas)
      if (isa <= cpu::detected_isa()) result.push_back({model, isa});
  return result;
}

INSTANTIATE_TEST_SUITE_P(Golden, Architectures, testing::ValuesIn(cases()), [](const auto& test) {
  return fmt::format("{}_on_{}", test.param.model, cpu::name(test.param.isa));
});

TEST(Golden, ran_on_every_instruction_set) {
  if (kIsas[2] > cpu::detected_isa())
    GTEST_SKIP() << "not on this CPU, which has " << cpu::name(cpu::detected_isa()) << " at most";
}

TEST(DefaultModel, prompts_tokenize_and_continue_as_in_transformers_slow) {
  const char* directory = std::getenv("WHIT_SMOL_HF");
  if (directory == nullptr)
    GTEST_SKIP() << "WHIT_SMOL_HF does not name the default model's Hugging Face directory";
  const Json expected = expected_values("smol");
  for (const Json& prompt : expected["prompts"]) {
    SCOPED_TRACE(prompt["prompt"].get<std::string>());
    const std::vector<int32_t> ids = prompt["ids"];
    const std::vector<int32_t> reference = prompt["greedy_ids"];
    Runner runner(directory, cpu::detected_isa(), 64);
    EXPECT_EQ(runner.model().tokenizer().encode(prompt["prompt"].get<std::string>()), ids);
    const std::span<const float> row = runner.feed(ids);
    const std::vector<float> logits(row.begin(), row.end());

    // Every logit that transformers' dump has. The bound is the one that this project promises.
    constexpr float kLogitBound = 1e-2f;
    std::vector<int32_t> best(logits.size());
    for (size_t i = 0; i < best.size(); ++i) best[i] = static_cast<int32_t>(i);
    const Json& top10 = prompt["last_top10"];
    std::partial_sort(best.begin(), best.begin() + std::ssize(top10), best.end(),
                      [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (size_t i = 0; i < top10.size(); ++i) {
      EXPECT_EQ(best[i], top10[i]["id"].get<int32_t>()) << "rank " << i;
      EXPECT_NEAR(logits[top10[i]["id"].get<size_t>()], top10[i]["logit"].get<float>(),
                  kLogitBound);
    }
    for (const auto& [id, logit] : prompt["last_logits_probe"].items())
      EXPECT_NEAR(logits[std::stoul(id)], logit.get<float>(), kLogitBound) << "id " << id;
    EXPECT_EQ(runner.greedy(logits, reference.size()), reference);
  }
}

}  // namespace
}  // namespace whit
