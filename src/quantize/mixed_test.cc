#include "quantize/mixed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/file.h"
#include "engine/executor.h"
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

// Groups with candidates of rising cost and mostly falling divergence.
std::vector<GroupSensitivity> random_groups(int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0.5, 1.5);
  std::vector<GroupSensitivity> groups(count);
  for (int g = 0; g < count; ++g) {
    groups[g].name = std::to_string(g);
    groups[g].linears = {g};
    groups[g].weights = 1000 * (1 + g % 3);
    double bits = 4;
    double kld = 0.1 * uniform(random);
    for (int c = 0; c < 4; ++c) {
      groups[g].candidates.push_back(
          {.scheme = mixed_candidates(false, false)[c],
           .bits = bits * static_cast<double>(groups[g].weights),
           .kld = kld,
           .seconds = 1e-6 * bits * static_cast<double>(groups[g].weights)});
      bits *= 1.1 + 0.3 * uniform(random);
      kld *= 0.7 * uniform(random);
    }
  }
  return groups;
}

// Every combination.
double best_by_enumeration(const std::vector<GroupSensitivity>& groups, double bits_per_weight) {
  double best = std::numeric_limits<double>::infinity();
  std::vector<int> choice(groups.size(), 0);
  for (;;) {
    double bits = 0, weights = 0, kld = 0;
    for (size_t g = 0; g < groups.size(); ++g) {
      bits += groups[g].candidates[choice[g]].bits;
      kld += groups[g].candidates[choice[g]].kld;
      weights += static_cast<double>(groups[g].weights);
    }
    if (bits <= bits_per_weight * weights) best = std::min(best, kld);
    size_t g = 0;
    while (g < groups.size() && ++choice[g] == 4) choice[g++] = 0;
    if (g == groups.size()) return best;
  }
}

TEST(MixedTest, a_plan_keeps_its_budget_and_comes_within_one_upgrade_of_the_best) {
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    const std::vector<GroupSensitivity> groups = random_groups(6, seed);
    double largest_gain = 0;  // what one upgrade can be worth
    for (const GroupSensitivity& group : groups)
      for (const SchemeCost& cost : group.candidates)
        largest_gain = std::max(largest_gain, group.candidates[0].kld - cost.kld);
    for (const double target : {4.2, 5.0, 6.0, 7.5}) {
      const MixedPlan plan = choose_plan(groups, {.bits_per_weight = target}, 0);
      EXPECT_LE(plan.bits_per_weight, target);
      const double best = best_by_enumeration(groups, target);
      EXPECT_GE(plan.kld, best * (1 - 1e-12)) << seed << " " << target;
      EXPECT_LE(plan.kld, best + largest_gain) << seed << " " << target;
    }
  }
}

TEST(MixedTest, the_front_falls_from_the_fewest_bits_to_the_least_divergence) {
  const std::vector<GroupSensitivity> groups = random_groups(20, 3);
  const std::vector<MixedPlan> front = pareto_front(groups, 0);
  ASSERT_GT(front.size(), 20u);
  for (size_t i = 1; i < front.size(); ++i) {
    EXPECT_GT(front[i].bits_per_weight, front[i - 1].bits_per_weight);
    EXPECT_LT(front[i].kld, front[i - 1].kld);
  }
  EXPECT_NEAR(front.front().bits_per_weight, 4, 1e-9);
}

TEST(MixedTest, a_bound_on_ppl_takes_the_smallest_plan_and_a_speed_is_kept) {
  const std::vector<GroupSensitivity> groups = random_groups(12, 5);
  const std::vector<MixedPlan> front = pareto_front(groups, 0.01);
  const double middle = predicted_ppl_increase(front[front.size() / 2].kld);
  const MixedPlan small = choose_plan(groups, {.ppl_increase = middle}, 0.01);
  EXPECT_LE(predicted_ppl_increase(small.kld), middle);
  EXPECT_DOUBLE_EQ(small.bits_per_weight, front[front.size() / 2].bits_per_weight);
  const double speed = front[front.size() / 2].tokens_per_s;
  const MixedPlan fast = choose_plan(groups, {.tokens_per_s = speed}, 0.01);
  EXPECT_GE(fast.tokens_per_s, speed);
  EXPECT_LE(fast.kld, front[front.size() / 2].kld * (1 + 1e-9));
}

TEST(MixedTest, a_target_out_of_reach_says_what_can_be_reached) {
  const std::vector<GroupSensitivity> groups = random_groups(4, 2);
  const auto message = [&](const MixedTarget& target) -> std::string {
    try {
      choose_plan(groups, target, 0.01);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message({.bits_per_weight = 3.9}), HasSubstr("at least 4.000 bits"));
  EXPECT_THAT(message({.ppl_increase = 1e-9}), HasSubstr("least predicted increase"));
  EXPECT_THAT(message({.tokens_per_s = 1e9}), HasSubstr("tokens per second"));
}

TEST(SensitivityTest, finer_formats_lose_less_and_bits_are_those_of_an_engine) {
  const Model model = Model::open(golden_model("mistral"));
  const CalibrationData data = random_tokens(model, 16, 24, 3);
  ThreadPool pool(2);
  SensitivityStudy study(model, data, 48, 16, mixed_candidates(false, false), cpu::detected_isa(),
                         pool);
  EXPECT_EQ(study.tokens(), 48);
  EXPECT_GT(study.expected_seconds(), 0);
  const std::vector<GroupSensitivity> groups = study.run();
  ASSERT_EQ(groups.size(), 4u * model.graph().layers());
  for (const GroupSensitivity& group : groups) {
    ASSERT_EQ(group.candidates.size(), 5u);
    const auto kld = [&](int candidate) { return group.candidates[candidate].kld; };
    EXPECT_GT(kld(0), kld(3)) << group.name;  // int4 in groups of 128, int8
    EXPECT_GT(kld(2), kld(4)) << group.name;  // int4 in groups of 32, bf16
    for (const SchemeCost& cost : group.candidates) {
      double bits = 0;
      for (const NodeId id : group.linears) {
        const Node& node = model.graph().node(id);
        bits += 8.0 * static_cast<double>(
                          round_to_scheme(model.weights().linear(node).view, cost.scheme, pool)
                              .view()
                              .bytes());
      }
      EXPECT_DOUBLE_EQ(cost.bits, bits) << group.name << " " << cost.scheme.full_name();
    }
  }
}

TEST(MixedTest, an_engine_of_several_schemes_keeps_its_target_and_runs) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "mistral"));
  const CalibrationData data = random_tokens(source, 16, 24, 1);
  ThreadPool pool(2);
  for (const char* base : {"w4a16", "w4a8"}) {
    const Recipe recipe{.mode = "auto",
                        .scheme = QuantScheme::preset(base),
                        .mixed = MixedRequest{.target = {.bits_per_weight = 6.5}, .tokens = 48},
                        .output = scratch.path() / base};
    std::string noticed;
    const QuantizeOptions options{.isa = cpu::detected_isa(),
                                  .notice = [&](const std::string& text) { noticed = text; }};
    const QuantizeSummary summary =
        quantize_model(source, {&recipe, 1}, &data, options, pool).at(0);
    EXPECT_THAT(noticed, HasSubstr("48 held-out tokens"));
    const Model engine = Model::open(recipe.output);
    std::set<std::string> used;
    double bits = 0, weights = 0;
    for (int layer = 0; layer < engine.graph().layers(); ++layer)
      for (const ScalingGroup& group :
           scaling_groups(engine.graph(), engine.graph().layer(layer))) {
        const auto scheme_of = [&](NodeId id) {
          return engine.engine()->manifest().linears.at(engine.graph().node(id).name);
        };
        for (const NodeId id : group.linears) {
          const Node& node = engine.graph().node(id);
          EXPECT_EQ(scheme_of(id), scheme_of(group.linears[0])) << node.name;
          bits += stored_bits(scheme_of(id), node.n, node.k);
          weights += static_cast<double>(node.n * node.k);
        }
        used.insert(scheme_of(group.linears[0]).full_name());
      }
    EXPECT_GT(used.size(), 1u);
    EXPECT_LE(bits / weights, 6.5);
    EXPECT_EQ(engine.engine()->manifest().scheme_name(), "mixed");
    EXPECT_EQ(summary.mixed.at("chosen").at("bits_per_weight").get<double>(), bits / weights);
    Executor executor(engine.config(), engine.graph(), engine.weights(),
                      {.max_context = 16, .isa = cpu::detected_isa()}, pool);
    KvCache cache = executor.make_cache(1, 16, DType::kF32);
    const std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6};
    const int64_t starts[] = {0}, counts[] = {6};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    executor.step(ids, batch.view(), cache);
    const int32_t last[] = {5};
    const float* logits = executor.logits(last);
    for (int64_t i = 0; i < engine.config().vocab_size; ++i) ASSERT_TRUE(std::isfinite(logits[i]));
  }
}

TEST(MixedTest, targets_and_modes_that_make_no_sense_are_refused) {
  ScratchDirectory scratch;
  const Model source = Model::open(golden_model("mistral"));
  const auto message = [&](Recipe recipe) -> std::string {
    recipe.scheme = QuantScheme::preset("w4a16");
    recipe.output = scratch.path() / "e";
    try {
      check_recipe(recipe, source);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message({.mode = "auto", .mixed = MixedRequest{}}), HasSubstr("--target-bpw"));
  EXPECT_THAT(message({.mode = "auto", .mixed = MixedRequest{.target = {.bits_per_weight = 2}}}),
              HasSubstr("4 … 16"));
  EXPECT_THAT(message({.mode = "awq", .mixed = MixedRequest{.target = {.bits_per_weight = 5}}}),
              HasSubstr("--mode auto"));
  EXPECT_THAT(message({.mode = "auto", .salient = {.share = 0.5}}), HasSubstr("0 … 0.1"));
  EXPECT_THAT(message({.mode = "awq", .salient = {.share = 0.01}}), HasSubstr("--mode auto"));
}

}  // namespace
}  // namespace whit
