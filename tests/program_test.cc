// Whole models of tests/golden: what must not change a token's result (batch, chunking, threads,
// the one-row path), and what must (an ISA's rounding is covered by the kernels' own tests).
#include "engine/program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "engine/executor.h"
#include "engine/model.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

constexpr int64_t kMostTokens = 320;

// Logits [T, V] of a sequence, in steps of the given sizes.
std::vector<float> run_in_chunks(const Model& model, int threads, std::span<const int32_t> ids,
                                 std::span<const int64_t> chunks,
                                 cpu::Isa isa = cpu::detected_isa()) {
  ThreadPool pool(threads);
  Executor executor(model.config(), model.graph(), model.weights(),
                    {.max_tokens = kMostTokens,
                     .max_context = kMostTokens,
                     .max_logit_rows = kMostTokens,
                     .isa = isa},
                    pool);
  KvCache cache = executor.make_cache(1, kMostTokens, DType::kF16);
  std::vector<float> logits;
  int64_t start = 0;
  for (const int64_t count : chunks) {
    const int64_t starts[] = {start}, counts[] = {count};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    executor.step(ids.subspan(start, count), batch.view(), cache);
    std::vector<int32_t> rows(count);
    for (int64_t i = 0; i < count; ++i) rows[i] = static_cast<int32_t>(i);
    const float* out = executor.logits(rows);
    logits.insert(logits.end(), out, out + count * model.config().vocab_size);
    start += count;
  }
  return logits;
}

class InvarianceTest : public ::testing::TestWithParam<const char*> {
 protected:
  // The model itself, or an engine of the scheme in the parameter.
  Model open() {
    const std::string scheme = GetParam();
    const std::filesystem::path source = with_tokenizer(scratch_, "llama_untied");
    if (scheme == "f32") return Model::open(source);
    const Model original = Model::open(source);
    const Recipe recipe{.mode = "rtn",
                        .scheme = QuantScheme::preset(scheme, 32),
                        .output = scratch_.path() / scheme};
    ThreadPool pool(2);
    quantize_model(original, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool);
    return Model::open(recipe.output);
  }
  ScratchDirectory scratch_;
};

TEST_P(InvarianceTest, chunking_and_thread_count_do_not_change_a_bit) {
  const Model model = open();
  const CalibrationData data = random_tokens(model, 1, 29, 5);
  const std::vector<float> whole = run_in_chunks(model, 1, data.ids, std::vector<int64_t>{29});
  const std::vector<std::vector<int64_t>> plans = {
      {29}, {1, 1, 1, 26}, {17, 12}, {4, 5, 3, 17}, std::vector<int64_t>(29, 1)};
  for (const auto& plan : plans)
    for (const int threads : {1, 2, 3}) {
      const std::vector<float> logits = run_in_chunks(model, threads, data.ids, plan);
      ASSERT_EQ(logits.size(), whole.size());
      EXPECT_EQ(std::memcmp(logits.data(), whole.data(), whole.size() * 4), 0)
          << "plan of " << plan.size() << " steps, " << threads << " threads";
    }
}

TEST_P(InvarianceTest, rows_that_a_thread_takes_through_many_steps_give_the_bits_of_single_steps) {
  const Model model = open();
  const CalibrationData data = random_tokens(model, 1, 301, 11);
  for (const cpu::Isa isa :
       {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAmx}) {
    if (isa > cpu::detected_isa()) continue;
    // Steps of fewer than 128 rows are done one by one, each by all threads.
    const std::vector<float> single =
        run_in_chunks(model, 2, data.ids, std::vector<int64_t>{101, 37, 99, 64}, isa);
    const std::vector<std::vector<int64_t>> plans = {{301}, {129, 172}, {272, 29}};
    for (const auto& plan : plans)
      for (const int threads : {1, 2, 3})
        EXPECT_EQ(run_in_chunks(model, threads, data.ids, plan, isa), single)
            << name(isa) << ", first step " << plan[0] << ", " << threads << " threads";
  }
}

TEST_P(InvarianceTest, a_sequence_alone_equals_the_same_sequence_in_a_batch) {
  const Model model = open();
  ThreadPool pool(2);
  const CalibrationData data = random_tokens(model, 3, 11, 9);
  Executor executor(
      model.config(), model.graph(), model.weights(),
      {.max_tokens = 64, .max_context = 32, .max_logit_rows = 64, .isa = cpu::detected_isa()},
      pool);
  KvCache cache = executor.make_cache(3, 32, DType::kF16);
  // Lengths 11, 4 and 7 in one ragged step.
  const std::vector<int64_t> lengths = {11, 4, 7};
  std::vector<int32_t> ids;
  for (int64_t b = 0; b < 3; ++b)
    ids.insert(ids.end(), data.ids.begin() + b * 11, data.ids.begin() + b * 11 + lengths[b]);
  const ContiguousBatch batch(std::vector<int64_t>(3, 0), lengths, cache.page_tokens());
  executor.step(ids, batch.view(), cache);
  const std::vector<int32_t> last = {10, 14, 21};
  const float* together = executor.logits(last);
  const int64_t vocab = model.config().vocab_size;
  const std::vector<float> copy(together, together + 3 * vocab);
  for (int64_t b = 0; b < 3; ++b) {
    const std::vector<float> alone =
        run_in_chunks(model, 2, std::span(data.ids).subspan(b * 11, lengths[b]),
                      std::vector<int64_t>{lengths[b]});
    EXPECT_EQ(
        std::memcmp(alone.data() + (lengths[b] - 1) * vocab, copy.data() + b * vocab, vocab * 4), 0)
        << b;
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, InvarianceTest,
                         ::testing::Values("f32", "w4a16", "w4a8", "w8a8", "w8a16", "fp8", "w4afp8",
                                           "bf16"));

TEST(ProgramTest, positions_beyond_those_that_were_there_at_first_are_rotated_alike) {
  const ScratchDirectory scratch;
  const std::filesystem::path source = with_tokenizer(scratch, "llama_untied");
  Json config = parse_json(read_file(source / "config.json"), "config.json");
  config["max_position_embeddings"] = 4096;
  write_file(source / "config.json", config.dump());
  const Model model = Model::open(source);
  constexpr int64_t kLength = 1100;
  const CalibrationData data = random_tokens(model, 1, kLength, 7);
  const auto last_logits = [&](const std::vector<int64_t>& chunks) {
    ThreadPool pool(2);
    Executor executor(model.config(), model.graph(), model.weights(),
                      {.max_tokens = kLength, .max_logit_rows = 1, .isa = cpu::detected_isa()},
                      pool);
    KvCache cache = executor.make_cache(1, round_up(kLength, 16), DType::kF32);
    int64_t start = 0;
    for (const int64_t count : chunks) {
      const int64_t starts[] = {start}, counts[] = {count};
      const ContiguousBatch batch(starts, counts, cache.page_tokens());
      executor.step(std::span(data.ids).subspan(start, count), batch.view(), cache);
      start += count;
    }
    const auto row = static_cast<int32_t>(chunks.back() - 1);
    const float* out = executor.logits({&row, 1});
    return std::vector<float>(out, out + model.config().vocab_size);
  };
  EXPECT_EQ(last_logits({5, 507, 1, 580, 7}), last_logits({kLength}));
}

TEST(ProgramTest, tap_sees_the_inputs_of_every_linear_group) {
  const Model model = Model::open(golden_model("qwen2"));
  ThreadPool pool(2);
  const Graph& graph = model.graph();
  const NodeRange range = graph.layer(0);
  Program program(graph, range, model.weights(), {.max_tokens = 8, .isa = cpu::detected_isa()},
                  pool);
  KvCache cache(graph, range, DType::kF32, 1, 16);
  const RopeTables rope = rope_tables(model.config(), 16);
  std::vector<float> hidden(8 * model.config().hidden_size, 0.25f);
  const int64_t starts[] = {0}, counts[] = {8};
  const ContiguousBatch batch(starts, counts, 16);
  std::map<ValueId, int64_t> seen;
  Program::Input input;
  input.hidden = hidden.data();
  input.batch = batch.view();
  input.rope = &rope;
  input.cache = &cache;
  program.run(input, [&](ValueId value, const float* rows, int64_t count, int64_t stride) {
    EXPECT_EQ(count, 8);
    EXPECT_GE(stride, graph.value(value).width);
    for (int64_t i = 0; i < graph.value(value).width; ++i)
      EXPECT_TRUE(std::isfinite(rows[7 * stride + i]));
    ++seen[value];
  });
  for (const ScalingGroup& group : scaling_groups(graph, range)) EXPECT_EQ(seen[group.input], 1);
}

}  // namespace
}  // namespace whit
