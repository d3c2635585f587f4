#include "quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/file.h"
#include "base/progress.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

// Layer 0 of a tiny model with its statistics.
struct LayerFixture {
  explicit LayerFixture(const std::string& name, const QuantScheme& chosen)
      : model(Model::open(golden_model(name))),
        data(random_tokens(model, 16, 24, 3)),
        scheme(chosen),
        stream(model.config(), model.graph(), model.weights(), data, cpu::detected_isa(), pool),
        stats(stream.observe(0, model.weights(), LayerStream::Advance::kNo)),
        weights(LayerWeights::load(model.graph(), model.graph().layer(0), model.weights(), pool)),
        task{.graph = model.graph(),
             .range = model.graph().layer(0),
             .stats = stats,
             .scheme = scheme,
             .fixed_alpha = std::nullopt,
             .matmul = stream.matmul()} {}

  // The layer's output on fixed input rows with the given f32 weights.
  std::vector<float> run(const LayerWeights& w) {
    const Graph& graph = model.graph();
    const auto id_of = [&](const Node& node) {
      return static_cast<NodeId>(&node - graph.nodes().data());
    };
    const WeightProvider provider{
        .linear =
            [&](const Node& node) {
              LinearWeight weight;
              weight.view = {.format = WeightFormat::kF32,
                             .n = node.n,
                             .k = node.k,
                             .data = w.linears.at(id_of(node)).data<void>()};
              return weight;
            },
        .norm = [&](const Node& node) { return w.norms.at(id_of(node)).clone(); },
        .bias = [&](const Node& node) { return w.biases.at(id_of(node)).clone(); }};
    Program program(graph, task.range, provider, {.max_tokens = 8, .isa = cpu::detected_isa()},
                    pool);
    KvCache cache(graph, task.range, DType::kF32, 1, 16);
    const RopeTables rope = rope_tables(model.config(), 16);
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    std::vector<float> hidden(8 * model.config().hidden_size);
    for (float& value : hidden) value = normal(random);
    const int64_t starts[] = {0}, counts[] = {8};
    const ContiguousBatch batch(starts, counts, 16);
    Program::Input input;
    input.hidden = hidden.data();
    input.batch = batch.view();
    input.rope = &rope;
    input.cache = &cache;
    const float* out = program.run(input);
    return {out, out + hidden.size()};
  }

  ThreadPool pool{2};
  Model model;
  CalibrationData data;
  QuantScheme scheme;
  LayerStream stream;
  std::vector<InputStats> stats;
  LayerWeights weights;
  LayerTask task;
};

TEST(ObserverTest, gram_and_magnitudes_equal_a_plain_computation_on_all_tokens) {
  LayerFixture layer("qwen2", QuantScheme::preset("w4a16", 32));
  const Graph& graph = layer.model.graph();
  // The first group's input is norm(embedding), which is easy to compute by hand.
  const ScalingGroup group = scaling_groups(graph, layer.task.range)[0];
  const InputStats& stats = layer.task.stats_of(group.input);
  const Tensor table = layer.model.checkpoint()->load_f32("model.embed_tokens.weight");
  const Tensor norm = layer.model.checkpoint()->load_f32("model.layers.0.input_layernorm.weight");
  const int64_t k = stats.k;
  std::vector<double> largest(k, 0), gram(k * k, 0);
  int64_t tokens = 0;
  for (int64_t t = 0; t < layer.data.samples * layer.data.length; ++t) {
    const float* row = table.data<float>() + layer.data.ids[t] * k;
    double squares = 0;
    for (int64_t i = 0; i < k; ++i) squares += static_cast<double>(row[i]) * row[i];
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(k) + layer.model.config().rms_norm_eps);
    std::vector<double> x(k);
    for (int64_t i = 0; i < k; ++i) {
      x[i] = row[i] * scale * norm.data<float>()[i];
      largest[i] = std::max(largest[i], std::fabs(x[i]));
    }
    // One sequence a window here: every eighth is held out.
    if (t / layer.data.length % 8 == 7) continue;
    ++tokens;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) gram[i * k + j] += x[i] * x[j];
  }
  ASSERT_EQ(stats.search.tokens, tokens);
  ASSERT_EQ(stats.search.gram_tokens, tokens);
  double energy = 0;
  for (int64_t i = 0; i < k; ++i)
    energy = std::max(energy, gram[i * k + i] / static_cast<double>(tokens));
  for (int64_t i = 0; i < k; ++i) {
    EXPECT_NEAR(stats.max_abs.data<float>()[i], largest[i], 1e-5 * largest[i]);
    // A sum of `tokens` products of f32 values, each with a few roundings.
    for (int64_t j = 0; j < k; ++j)
      EXPECT_NEAR(stats.search.gram.data<float>()[i * k + j],
                  gram[i * k + j] / static_cast<double>(tokens),
                  static_cast<double>(tokens + 8) * 6e-8 * energy);
  }
}

TEST(FoldTest, folding_factors_into_every_producer_preserves_the_layer) {
  for (const char* name : {"llama_untied", "qwen2", "mistral"}) {
    LayerFixture layer(name, QuantScheme::preset("w8a8"));
    const std::vector<float> before = layer.run(layer.weights);
    std::mt19937 random(2);
    std::uniform_real_distribution<float> exponent(-2, 2);
    int folded = 0;
    for (const ScalingGroup& group : scaling_groups(layer.model.graph(), layer.task.range)) {
      ASSERT_GE(group.producer, 0) << name;
      std::vector<float> s(layer.model.graph().value(group.input).width);
      for (float& value : s) value = std::exp2(exponent(random));
      share_factors(group, s);
      fold(group, s.data(), layer.model.graph(), layer.weights, layer.pool);
      ++folded;
    }
    EXPECT_EQ(folded, 4);
    const std::vector<float> after = layer.run(layer.weights);
    float largest = 0;
    for (const float value : before) largest = std::max(largest, std::fabs(value));
    // f32 sums of the hidden and intermediate widths, each term rounded twice more by the factors.
    const auto bound =
        static_cast<float>(4 * layer.model.config().intermediate_size) * 6e-8f * largest;
    for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], before[i], bound) << name;
  }
}

TEST(TrialTest, loss_equals_the_measured_output_error_of_the_rounded_linear) {
  LayerFixture layer("llama_untied", QuantScheme::preset("w4a16", 32));
  const Graph& graph = layer.model.graph();
  const ScalingGroup group = scaling_groups(graph, layer.task.range)[3];
  GroupTrial trial(layer.task, group, layer.weights, nullptr);
  const NodeId id = group.linears[0];
  const Tensor& w = layer.weights.linears.at(id);
  QuantizedTensor rounded = make_quantized(WeightFormat::kInt4Group, w.dim(0), w.dim(1), 32, false);
  quantize_rows_rtn(w.data<float>(), 0, w.dim(0), nullptr, rounded);
  std::vector<float> values(w.size());
  dequantize_rows(rounded.view(), 0, w.dim(0), values.data());
  const InputStats& stats = layer.task.stats_of(group.input);
  // All search tokens are in the sample here, so the same expectation can be taken over rows.
  ASSERT_EQ(stats.search.sample_rows, stats.search.tokens);
  double error = 0, energy = 0;
  for (int64_t t = 0; t < stats.search.sample_rows; ++t)
    for (int64_t row = 0; row < w.dim(0); ++row) {
      double y = 0, delta = 0;
      for (int64_t i = 0; i < w.dim(1); ++i) {
        const double x = stats.search.sample.data<float>()[t * w.dim(1) + i];
        y += x * w.data<float>()[row * w.dim(1) + i];
        delta += x * (values[row * w.dim(1) + i] - w.data<float>()[row * w.dim(1) + i]);
      }
      error += delta * delta;
      energy += y * y;
    }
  error /= static_cast<double>(stats.search.sample_rows);
  energy /= static_cast<double>(stats.search.sample_rows);
  ASSERT_EQ(group.linears.size(), 1u);
  EXPECT_NEAR(trial.squared_error(Split::kSearch, id, nullptr, nullptr), error, 1e-3 * error);
  EXPECT_NEAR(trial.energy(Split::kSearch), energy, 1e-3 * energy);
  EXPECT_NEAR(trial.error(Split::kSearch, nullptr), error / energy, 2e-3 * error / energy);
}

TEST(TrialTest, estimates_follow_the_loss_from_candidate_to_candidate) {
  for (const char* scheme : {"w4a16", "w4a8", "w8a8", "fp8", "w4afp8"}) {
    LayerFixture layer("llama_untied", QuantScheme::preset(scheme, 32));
    for (const ScalingGroup& group : scaling_groups(layer.model.graph(), layer.task.range)) {
      GroupTrial trial(layer.task, group, layer.weights, nullptr);
      const std::vector<float>& mean = trial.mean_abs();
      for (const float exponent : {0.0f, 0.4f, 0.8f}) {
        std::vector<float> s(mean.size());
        for (size_t i = 0; i < s.size(); ++i) s[i] = std::pow(std::max(mean[i], 1e-3f), exponent);
        const double exact = trial.error(Split::kSearch, s.data()) * trial.energy(Split::kSearch);
        // The neglected terms are a sum of N·K²/2 products of independent rounding errors of mean
        // zero: small beside the N·K squares that are kept, for these N, K ≥ 64.
        EXPECT_NEAR(trial.estimate(s.data()), exact, 0.15 * exact) << scheme << " " << exponent;
      }
    }
  }
}

class AlgorithmTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(AlgorithmTest, no_group_is_worse_than_rounding_on_held_out_tokens) {
  const auto [mode, scheme] = GetParam();
  for (const char* name : {"llama_untied", "qwen2"}) {  // without biases, and with
    SCOPED_TRACE(name);
    const std::string_view text = scheme;
    const bool two_level = text.ends_with(" two-level");
    LayerFixture layer(name,
                       QuantScheme::preset(text.substr(0, text.find(' ')), 32, false, two_level));
    const LayerDecision decision = find_algorithm(mode).decide(layer.task, layer.weights);
    ASSERT_EQ(decision.reports.size(), 4u);
    for (const GroupReport& report : decision.reports) {
      EXPECT_GT(report.rtn_error, 0) << report.name;
      EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, AlgorithmTest,
    ::testing::Values(std::pair("awq", "w4a16"), std::pair("awq", "w4a8"),
                      std::pair("awq", "w4a8 two-level"), std::pair("awq", "w8a16"),
                      std::pair("smoothquant", "w8a8"), std::pair("rtn", "w4a16"),
                      std::pair("gptq", "w4a16"), std::pair("gptq", "w8a8"),
                      std::pair("awq-gptq", "w4a16"), std::pair("awq-gptq", "w4a8"),
                      std::pair("awq-gptq", "w8a16"), std::pair("smoothquant-gptq", "w8a8"),
                      std::pair("smoothquant-gptq", "w4a8"), std::pair("awq", "fp8"),
                      std::pair("smoothquant", "fp8"), std::pair("gptq", "fp8"),
                      std::pair("awq", "w4afp8"), std::pair("smoothquant", "w4afp8"),
                      std::pair("awq-gptq", "w4afp8")));

// Of the weights that AWQ left folded, which were then rounded.
TEST(AwqTest, of_two_level_scales_no_other_multiple_of_a_row_s_step_costs_less) {
  LayerFixture layer("llama_untied", QuantScheme::preset("w4a8", 32, false, true));
  LayerDecision decision = find_algorithm("awq").decide(layer.task, layer.weights);
  int rounded = 0;
  for (const ScalingGroup& group : scaling_groups(layer.model.graph(), layer.task.range)) {
    const auto applied = decision.applied.find(group.input);
    const GroupTrial trial(layer.task, group, layer.weights,
                           applied == decision.applied.end() ? nullptr : applied->second.data());
    const int64_t k = trial.k();
    for (const NodeId id : group.linears) {
      const auto found = decision.rounded.find(id);
      if (found == decision.rounded.end()) continue;
      ++rounded;
      const QuantizedTensor& weight = found->second;
      const int64_t groups = ceil_div(k, weight.group_size);
      for (int64_t row = 0; row < weight.n; ++row) {
        std::vector<uint8_t> multiples(groups);
        const float step = two_level_row(weight.view(), row, multiples.data());
        const float* w = layer.weights.linears.at(id).data<float>() + row * k;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t first = g * 32, count = std::min<int64_t>(32, k - first);
          const ValueRange range = value_range(w + first, count);
          const Int4Params whole = int4_params(range.low, range.high, false);
          const auto error = [&](int multiple) {
            const Int4Params params{static_cast<float>(multiple) * step, whole.zero};
            std::vector<double> d;
            for (int64_t i = 0; i < count; ++i)
              d.push_back(int4_round_trip(w[first + i], params, 1 / params.scale) - w[first + i]);
            double sum = 0;
            for (int64_t i = 0; i < count; ++i)
              for (int64_t j = 0; j < count; ++j)
                sum += d[i] * d[j] * trial.gram().data<float>()[(first + i) * k + first + j];
            return sum;
          };
          // The search's step may be a part of the one that is found in the scales; a range larger
          // than the group's may then be no multiple of it.
          const int most =
              std::min(most_multiple(whole.zero), static_cast<int>(whole.scale / step));
          for (int other = (most + 1) / 2 + 1; other <= most; ++other)
            EXPECT_LE(error(multiples[g]), error(other) * (1 + 1e-4))
                << row << " " << g << " " << other;
        }
      }
    }
  }
  EXPECT_GT(rounded, 0);
}

TEST(SmoothQuantTest, recovers_channels_that_plain_int8_loses) {
  // Four input channels of the norm are 100 times too large and their columns as much too small:
  // the function is the same, the int8 activations of all other channels drown.
  LayerFixture layer("llama_untied", QuantScheme::preset("w8a8"));
  const ScalingGroup group = scaling_groups(layer.model.graph(), layer.task.range)[0];
  std::vector<float> s(layer.model.graph().value(group.input).width, 1.0f);
  for (const size_t channel : {3u, 17u, 30u, 41u}) s[channel] = 0.01f;
  fold(group, s.data(), layer.model.graph(), layer.weights, layer.pool);
  for (InputStats& stats : layer.stats) {
    if (stats.value != group.input) continue;
    for (SplitStats* split : {&stats.search, &stats.held_out}) {
      for (int64_t i = 0; i < stats.k; ++i)
        for (int64_t j = 0; j < stats.k; ++j)
          split->gram.data<float>()[i * stats.k + j] /= s[i] * s[j];
      for (int64_t t = 0; t < split->sample_rows; ++t)
        for (int64_t i = 0; i < stats.k; ++i) split->sample.data<float>()[t * stats.k + i] /= s[i];
    }
    for (int64_t i = 0; i < stats.k; ++i) {
      stats.mean_abs.data<float>()[i] /= s[i];
      stats.max_abs.data<float>()[i] /= s[i];
    }
  }
  const LayerDecision decision = decide_smoothquant(layer.task, layer.weights);
  EXPECT_LT(decision.reports[0].error, decision.reports[0].rtn_error / 20);
  EXPECT_TRUE(decision.reports[0].exponent.has_value());
}

TEST(FallbackTest, statistics_that_cannot_be_factored_are_reported_by_every_compensating_mode) {
  for (const char* mode : {"gptq", "awq-gptq", "smoothquant-gptq"}) {
    LayerFixture layer("llama_untied", QuantScheme::preset("w8a8"));
    for (InputStats& stats : layer.stats) stats.search.gram.data<float>()[0] = -1000;
    const LayerDecision decision = find_algorithm(mode).decide(layer.task, layer.weights);
    for (const GroupReport& report : decision.reports) {
      EXPECT_THAT(report.fallbacks, ::testing::Contains(HasSubstr("not positive definite")))
          << mode << " " << report.name;
      EXPECT_THAT(to_json(report).dump(), HasSubstr("fallbacks"));
    }
  }
}

TEST(FallbackTest, dead_channels_and_too_few_tokens_are_named) {
  LayerFixture layer("llama_untied", QuantScheme::preset("w4a16", 32));
  InputStats& stats = layer.stats[0];
  GroupReport fine;
  judge_statistics(stats, fine);
  EXPECT_TRUE(fine.fallbacks.empty());
  stats.max_abs.data<float>()[3] = stats.max_abs.data<float>()[17] = 0;
  stats.search.gram_tokens = 10;
  GroupReport report;
  judge_statistics(stats, report);
  ASSERT_EQ(report.fallbacks.size(), 2u);
  EXPECT_THAT(report.fallbacks[0], HasSubstr("2 of 64 input channels are zero"));
  EXPECT_THAT(report.fallbacks[0], HasSubstr("(3, 17)"));
  EXPECT_THAT(report.fallbacks[1], HasSubstr("10 tokens of calibration for 64 input channels"));
}

TEST(QuantizeTest, the_same_inputs_make_the_same_engine_with_any_number_of_threads) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "mistral"));
  const CalibrationData data = random_tokens(source, 16, 16, 1);
  for (const std::string mode : {"awq", "auto"}) {
    std::vector<std::string> contents;
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      const Recipe recipe{.mode = mode,
                          .scheme = QuantScheme::preset("w4a8", 32),
                          .output = scratch.path() / fmt::format("{}{}", mode, threads)};
      quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool);
      contents.push_back(read_file(recipe.output / "weights.safetensors"));
    }
    EXPECT_EQ(contents[0], contents[1]) << mode;
  }
}

TEST(QuantizeTest, impossible_recipes_are_refused_before_any_work_with_what_is_possible) {
  const Model source = Model::open(golden_model("llama_untied"));
  ScratchDirectory scratch;
  ThreadPool pool(1);
  const auto message = [&](const Recipe& recipe) -> std::string {
    try {
      quantize_model(source, {&recipe, 1}, nullptr, {}, pool);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message({.mode = "smoothquant",
                       .scheme = QuantScheme::preset("w4a16"),
                       .output = scratch.path() / "a"}),
              HasSubstr("w8a8"));
  EXPECT_THAT(
      message(
          {.mode = "gguf", .scheme = QuantScheme::preset("w4a16"), .output = scratch.path() / "a"}),
      HasSubstr("awq, smoothquant, rtn"));
  EXPECT_THAT(
      message(
          {.mode = "awq", .scheme = QuantScheme::preset("w4a16"), .output = scratch.path() / "a"}),
      HasSubstr("--calib"));
  EXPECT_THAT(message({.mode = "rtn",
                       .scheme = QuantScheme::preset("w8a8"),
                       .head = "int3",
                       .output = scratch.path() / "a"}),
              HasSubstr("int8 or bf16"));
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
  try {
    QuantScheme::preset("w4a4");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("w4a16, w4a8, w8a8, w8a16, fp8, w4afp8, bf16"));
  }
}

TEST(QuantizeTest, an_interruption_leaves_nothing_behind) {
  ScratchDirectory model_scratch, scratch;
  const Model source = Model::open(with_tokenizer(model_scratch, "llama_untied"));
  ThreadPool pool(1);
  const Recipe recipe{
      .mode = "rtn", .scheme = QuantScheme::preset("w8a8"), .output = scratch.path() / "engine"};
  request_interrupt();
  EXPECT_THROW(quantize_model(source, {&recipe, 1}, nullptr, {}, pool), Error);
  clear_interrupt();
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

}  // namespace
}  // namespace whit
