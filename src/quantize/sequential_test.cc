#include "quantize/sequential.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "engine/executor.h"
#include "quantize/paired_target.h"
#include "quantize/quantize.h"
#include "quantize/rounding.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

// Statistics of rows x̂ [T, K] and of what goes with them, e [T, E], in both splits.
InputStats stats_of(const std::vector<float>& x, const std::vector<float>& e, int64_t k,
                    int64_t width) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / k;
  const auto moment = [&](const std::vector<float>& left, int64_t rows) {
    Tensor result(DType::kF32, {rows, k});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t t = 0; t < tokens; ++t)
          sum += static_cast<double>(left[t * rows + i]) * x[t * k + j];
        result.data<float>()[i * k + j] = static_cast<float>(sum / static_cast<double>(tokens));
      }
    return result;
  };
  InputStats stats;
  stats.k = k;
  for (SplitStats* split : {&stats.search, &stats.held_out}) {
    split->tokens = split->gram_tokens = tokens;
    split->gram = moment(x, k);
    split->cross = moment(e, width);
  }
  return stats;
}

double mean_of_diagonal(const Tensor& gram) {
  double sum = 0;
  for (int64_t i = 0; i < gram.dim(0); ++i) sum += gram.data<float>()[i * gram.dim(0) + i];
  return sum / static_cast<double>(gram.dim(0));
}

// The rows w of a least-squares fit by Gaussian elimination in f64: w·(gram + λ·I) = right.
std::vector<double> fit(const Tensor& gram, const std::vector<double>& right, int64_t n) {
  const int64_t k = gram.dim(0);
  std::vector<double> a(k * k), b = right;
  for (int64_t i = 0; i < k * k; ++i) a[i] = gram.data<float>()[i];
  for (int64_t i = 0; i < k; ++i) a[i * k + i] += 0.01 * mean_of_diagonal(gram);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = i + 1; j < k; ++j) {
      const double by = a[j * k + i] / a[i * k + i];
      for (int64_t c = i; c < k; ++c) a[j * k + c] -= by * a[i * k + c];
      for (int64_t row = 0; row < n; ++row) b[row * k + j] -= by * b[row * k + i];
    }
  for (int64_t i = k - 1; i >= 0; --i)
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t c = i + 1; c < k; ++c) b[row * k + i] -= a[i * k + c] * b[row * k + c];
      b[row * k + i] /= a[i * k + i];
    }
  return b;
}

struct Fixture {
  ThreadPool pool{2};
  Matmul matmul{pool, cpu::detected_isa()};
  std::mt19937 random{7};
  std::normal_distribution<float> normal;
  std::vector<float> rows(int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  }
  Tensor weight(int64_t n, int64_t k) {
    Tensor w(DType::kF32, {n, k});
    for (float& value : w.f32()) value = normal(random);
    return w;
  }
};

TEST(PairedTargetTest, equals_a_direct_least_squares_fit_of_the_wanted_outputs) {
  Fixture fixture;
  const int64_t n = 5, k = 24, tokens = 200;
  const Tensor w = fixture.weight(n, k);
  const std::vector<float> x = fixture.rows(tokens * k);
  std::vector<float> changed = x;  // as earlier roundings leave it: one channel leaks into the next
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 1; i < k; ++i) changed[t * k + i] += 0.3f * x[t * k + i - 1];
  std::vector<float> wanted(tokens * n, 0.0f), difference(tokens * k);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t row = 0; row < n; ++row)
      for (int64_t i = 0; i < k; ++i)
        wanted[t * n + row] += w.data<float>()[row * k + i] * x[t * k + i];
  for (size_t i = 0; i < difference.size(); ++i) difference[i] = x[i] - changed[i];

  for (const Beside beside : {Beside::kWantedOutput, Beside::kInputDifference}) {
    const bool output = beside == Beside::kWantedOutput;
    const InputStats stats = stats_of(changed, output ? wanted : difference, k, output ? n : k);
    const PairedTarget target = paired_target(w.clone(), stats, beside, fixture.matmul);
    EXPECT_EQ(target.note, "");
    EXPECT_GT(target.share, 0.9);
    const InputStats direct = stats_of(changed, wanted, k, n);
    // (y − W·x̂)·x̂ᵀ, fitted, from W on.
    std::vector<double> missing(n * k);
    for (int64_t row = 0; row < n; ++row)
      for (int64_t j = 0; j < k; ++j) {
        missing[row * k + j] = direct.search.cross.data<float>()[row * k + j];
        for (int64_t i = 0; i < k; ++i)
          missing[row * k + j] -= static_cast<double>(w.data<float>()[row * k + i]) *
                                  direct.search.gram.data<float>()[i * k + j];
      }
    const std::vector<double> step = fit(stats.search.gram, missing, n);
    for (int64_t i = 0; i < n * k; ++i)
      // f32 moments of size about 2 go through a system of condition about 100.
      EXPECT_NEAR(target.weight.data<float>()[i], w.data<float>()[i] + target.share * step[i], 1e-3)
          << output << " " << i;
  }
}

TEST(PairedTargetTest, moves_nothing_where_held_out_tokens_say_the_opposite) {
  Fixture fixture;
  const int64_t n = 3, k = 16;
  const Tensor w = fixture.weight(n, k);
  const std::vector<float> x = fixture.rows(100 * k);
  InputStats stats = stats_of(x, fixture.rows(100 * k), k, k);
  for (int64_t i = 0; i < k * k; ++i)
    stats.held_out.cross.data<float>()[i] = -stats.search.cross.data<float>()[i];
  const PairedTarget target =
      paired_target(w.clone(), stats, Beside::kInputDifference, fixture.matmul);
  EXPECT_EQ(target.share, 0);
  EXPECT_THAT(target.note, HasSubstr("not done"));
  for (int64_t i = 0; i < n * k; ++i) EXPECT_EQ(target.weight.data<float>()[i], w.data<float>()[i]);
}

TEST(PairedTargetTest, statistics_that_cannot_be_factored_are_noted_and_correct_nothing) {
  Fixture fixture;
  const int64_t n = 2, k = 8;
  const Tensor w = fixture.weight(n, k);
  InputStats stats = stats_of(fixture.rows(50 * k), fixture.rows(50 * k), k, k);
  stats.search.gram.data<float>()[0] = -1000;
  const PairedTarget target =
      paired_target(w.clone(), stats, Beside::kInputDifference, fixture.matmul);
  EXPECT_THAT(target.note, HasSubstr("not positive definite"));
  for (int64_t i = 0; i < n * k; ++i) EXPECT_EQ(target.weight.data<float>()[i], w.data<float>()[i]);
}

class SequentialSchemeTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SequentialSchemeTest, no_group_is_worse_than_rounding_on_held_out_tokens) {
  for (const char* name : {"mistral", "qwen2"}) {  // without biases, and with
    const Model model = Model::open(golden_model(name));
    const CalibrationData data = random_tokens(model, 16, 24, 3);
    ThreadPool pool(2);
    const WeightProvider weights = model.weights();
    const QuantScheme scheme = QuantScheme::preset(GetParam(), 32);
    PairedStream stream(model.config(), model.graph(), weights, data, cpu::detected_isa(), pool);
    for (int index = 0; index < model.graph().layers(); ++index) {
      const SequentialLayer layer = quantize_sequentially(
          stream, model.graph(), model.graph().layer(index), weights, {.scheme = scheme});
      ASSERT_EQ(layer.reports.size(), 4u);
      for (const GroupReport& report : layer.reports) {
        EXPECT_GT(report.rtn_error, 0) << report.name;
        EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, SequentialSchemeTest,
                         ::testing::Values("w4a16", "w4a8", "w8a8", "w8a16", "fp8", "w4afp8"));

// Mean over tokens of ‖x̂ − x‖² / ‖x‖² of the residual stream behind every layer, both models having
// run from the tokens on.
std::vector<double> stream_errors(const Model& model, const Model& engine,
                                  const CalibrationData& data, ThreadPool& pool) {
  const WeightProvider exact_weights = model.weights(), weights = engine.weights();
  LayerStream exact(model.config(), model.graph(), exact_weights, data, cpu::detected_isa(), pool);
  LayerStream got(engine.config(), engine.graph(), weights, data, cpu::detected_isa(), pool);
  std::vector<double> errors;
  for (int layer = 0; layer < model.graph().layers(); ++layer) {
    exact.advance(layer, exact_weights);
    got.advance(layer, weights);
    const Tensor &x = *exact.state()[0], &y = *got.state()[0];
    double sum = 0;
    for (int64_t row = 0; row < x.dim(0); ++row) {
      double squares = 0, size = 0;
      for (int64_t i = row * x.dim(1); i < (row + 1) * x.dim(1); ++i) {
        squares += std::pow(y.data<float>()[i] - x.data<float>()[i], 2.0);
        size += std::pow(x.data<float>()[i], 2.0);
      }
      sum += squares / size;
    }
    errors.push_back(sum / static_cast<double>(x.dim(0)));
  }
  return errors;
}

TEST(SequentialTest, on_fresh_tokens_no_layer_of_a_model_with_biases_ends_worse_than_by_rounding) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "qwen2"));
  const CalibrationData data = random_tokens(source, 32, 24, 1),
                        fresh = random_tokens(source, 16, 24, 2);
  ThreadPool pool(2);
  for (const std::string scheme : {"w4a16", "w4a8", "w8a8"}) {
    std::map<std::string, std::vector<double>> errors;
    for (const std::string mode : {"rtn", "awq", "auto"}) {
      const Recipe recipe{.mode = mode,
                          .scheme = QuantScheme::preset(scheme, 32),
                          .head = "bf16",
                          .output = scratch.path() / (mode + scheme)};
      quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool);
      errors[mode] = stream_errors(source, Model::open(recipe.output), fresh, pool);
    }
    for (size_t layer = 0; layer < errors["rtn"].size(); ++layer) {
      EXPECT_GT(errors["rtn"][layer], 0) << scheme << layer;
      EXPECT_LE(errors["awq"][layer], errors["rtn"][layer]) << scheme << layer;
      EXPECT_LE(errors["auto"][layer], errors["rtn"][layer]) << scheme << layer;
    }
  }
}

TEST(SequentialTest, too_few_tokens_become_warnings_that_name_the_group) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "mistral"));
  const CalibrationData data = random_tokens(source, 2, 8, 1);
  ThreadPool pool(2);
  const Recipe recipe{
      .mode = "auto", .scheme = QuantScheme::preset("w4a16", 32), .output = scratch.path() / "e"};
  const QuantizeSummary summary =
      quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool).at(0);
  EXPECT_THAT(summary.warnings,
              ::testing::Contains(::testing::AllOf(HasSubstr("model.layers.0.mlp.down_proj: "),
                                                   HasSubstr("are too few"))));
  EXPECT_THAT(Model::open(recipe.output).engine()->manifest().report.dump(),
              HasSubstr("\"fallbacks\""));
}

// The logits of a model after a prompt of `count` tokens, read at once or one by one.
std::vector<float> logits_of(const Model& model, const WeightProvider& weights, bool at_once,
                             ThreadPool& pool) {
  Executor executor(model.config(), model.graph(), weights,
                    {.max_context = 16, .isa = cpu::detected_isa()}, pool);
  KvCache cache = executor.make_cache(1, 16, DType::kF32);
  const std::vector<int32_t> ids = {1, 5, 9, 2, 7, 3, 8};
  const int64_t step = at_once ? 7 : 1;
  for (int64_t first = 0; first < 7; first += step) {
    const int64_t starts[] = {first}, counts[] = {step};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    executor.step({ids.data() + first, static_cast<size_t>(step)}, batch.view(), cache);
  }
  const int32_t last[] = {static_cast<int32_t>(step - 1)};
  const float* logits = executor.logits(last);
  return {logits, logits + model.config().vocab_size};
}

TEST(SequentialTest, salient_channels_run_as_a_second_product_of_gathered_inputs) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "qwen2"));
  const CalibrationData data = random_tokens(source, 16, 24, 1);
  ThreadPool pool(2);
  for (const char* scheme : {"w4a16", "w4a8"}) {
    const Recipe recipe{.mode = "auto",
                        .scheme = QuantScheme::preset(scheme, 32),
                        .head = "bf16",
                        .salient = {.share = 0.05},
                        .output = scratch.path() / scheme};
    quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool);
    const Model engine = Model::open(recipe.output);
    const WeightProvider stored = engine.weights();
    int64_t channels = 0;
    // The same numbers in one dense weight.
    WeightProvider dense = stored;
    dense.linear = [&](const Node& node) {
      LinearWeight weight = stored.linear(node);
      if (weight.salient_channels.empty()) return weight;
      channels += static_cast<int64_t>(weight.salient_channels.size());
      auto sum = std::make_shared<Tensor>(DType::kF32, Shape{node.n, node.k});
      dequantize_rows(weight, 0, node.n, sum->data<float>());
      return LinearWeight{.view = f32_view(*sum), .owner = sum};
    };
    const std::vector<float> expected = logits_of(engine, dense, true, pool);
    // 5 % of 96 and of 36 inputs: q, k, v, o, gate, up with 5, down with 2 channels, in two layers.
    EXPECT_EQ(channels, 2 * (6 * 5 + 2));
    double largest = 0;
    for (const float value : expected) largest = std::max<double>(largest, std::fabs(value));
    for (const bool at_once : {true, false}) {
      const std::vector<float> actual = logits_of(engine, stored, at_once, pool);
      for (size_t i = 0; i < expected.size(); ++i)
        // w4a8 rounds the activations of all other channels by 2⁻⁸ of the largest, AVX2's w4a16 by
        // 2⁻¹⁵.
        ASSERT_NEAR(actual[i], expected[i], (scheme[3] == '8' ? 0.1 : 0.1 / 128) * largest)
            << scheme << at_once << i;
    }
  }
}

TEST(SequentialTest, salient_channels_are_kept_only_where_they_pay) {
  const Model model = Model::open(golden_model("qwen2"));
  const CalibrationData data = random_tokens(model, 16, 24, 3);
  ThreadPool pool(2);
  const Graph& graph = model.graph();
  const int64_t d = model.config().hidden_size, count = 2;
  const double share = static_cast<double>(count) / static_cast<double>(d);
  bool kept[2] = {false, false};
  for (const bool outlier : {false, true}) {
    WeightProvider weights = model.weights();
    weights.norm = [&, plain = weights.norm](const Node& node) {
      Tensor norm = plain(node);
      if (outlier) norm.data<float>()[3] *= 300;  // no factor can even that out
      return norm;
    };
    // The first group, whose inputs are the same in all three runs.
    const auto first_group = [&](const SalientRequest& request) {
      PairedStream stream(model.config(), graph, weights, data, cpu::detected_isa(), pool);
      SequentialLayer layer =
          quantize_sequentially(stream, graph, graph.layer(0), weights,
                                {.scheme = QuantScheme::preset("w4a16", 32), .salient = request});
      const NodeId linear = scaling_groups(graph, graph.layer(0)).front().linears.front();
      return std::pair(layer.reports.front(), layer.layer.salient.contains(linear));
    };
    const auto [none, without] = first_group({});
    const auto [all, with] = first_group({.share = share});
    const auto [judged, taken] =
        first_group({.share = share, .groups = SalientRequest::Groups::kWherePaying});
    EXPECT_FALSE(without);
    EXPECT_TRUE(with);
    EXPECT_EQ(taken, all.error <= (1 - least_salient_gain(count, d)) * none.error);
    EXPECT_EQ(judged.error, taken ? all.error : none.error);
    EXPECT_THAT(judged.note, HasSubstr(taken ? "2 salient channels kept in bf16"
                                             : "2 salient channels not kept"));
    kept[outlier] = taken;
  }
  EXPECT_FALSE(kept[0]);
  EXPECT_TRUE(kept[1]);
}

TEST(SequentialTest, an_engine_lists_the_channels_that_were_kept_and_no_others) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "qwen2"));
  const CalibrationData data = random_tokens(source, 16, 24, 1);
  ThreadPool pool(2);
  const Recipe recipe{.mode = "auto",
                      .scheme = QuantScheme::preset("w4a16", 32),
                      .salient = {.share = 0.03, .groups = SalientRequest::Groups::kWherePaying},
                      .output = scratch.path() / "e"};
  const QuantizeSummary summary =
      quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool).at(0);
  const Model engine = Model::open(recipe.output);
  const auto& listed = engine.engine()->manifest().salient;
  size_t kept = 0;
  for (const GroupReport& report : summary.reports)
    kept += report.note.find("salient channels kept in bf16") != std::string::npos;
  std::set<NodeId> groups;  // by the first of their linears
  for (const Node& node : engine.graph().nodes()) {
    if (node.op != Op::kLinear || node.layer < 0) continue;
    const LinearWeight weight = engine.weights().linear(node);
    EXPECT_EQ(listed.contains(node.name), !weight.salient_channels.empty()) << node.name;
  }
  for (int layer = 0; layer < engine.graph().layers(); ++layer)
    for (const ScalingGroup& group : scaling_groups(engine.graph(), engine.graph().layer(layer)))
      if (listed.contains(engine.graph().node(group.linears.front()).name))
        groups.insert(group.linears.front());
  EXPECT_EQ(groups.size(), kept);
  EXPECT_GT(logits_of(engine, engine.weights(), true, pool).size(), 0u);
}

TEST(SequentialTest, least_gain_of_salient_channels_is_what_their_bits_give_elsewhere) {
  EXPECT_DOUBLE_EQ(least_salient_gain(0, 64), 0);
  EXPECT_DOUBLE_EQ(least_salient_gain(4, 64), 0.75);  // one bit per weight
  EXPECT_NEAR(least_salient_gain(10, 2000), 0.105, 0.001);
}

TEST(SequentialTest, stands_beside_other_recipes_and_refuses_propagate) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "llama_untied"));
  const CalibrationData data = random_tokens(source, 8, 16, 1);
  ThreadPool pool(2);
  const std::vector<Recipe> recipes = {
      {.mode = "auto", .scheme = QuantScheme::preset("w4a16", 32), .output = scratch.path() / "a"},
      {.mode = "awq", .scheme = QuantScheme::preset("w4a16", 32), .output = scratch.path() / "b"}};
  const auto both = quantize_model(source, recipes, &data, {.isa = cpu::detected_isa()}, pool);
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0].reports.front().algorithm, "auto");
  EXPECT_EQ(both[1].reports.front().algorithm, "awq");
  EXPECT_EQ(both[0].bits_per_weight, both[1].bits_per_weight);
  try {
    quantize_model(source, {&recipes[0], 1}, &data, {.isa = cpu::detected_isa(), .propagate = true},
                   pool);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("--propagate"));
  }
}

}  // namespace
}  // namespace whit
