#include "quantize/rotate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/executor.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using testing::ScratchDirectory;
using testing::with_tokenizer;

TEST(RotationTest, is_orthogonal_and_spreads_every_channel) {
  for (const int64_t size : {1, 7, 64, 96, 576}) {
    const Rotation rotation(size, 1);
    std::vector<float> start(size);
    for (int64_t i = 0; i < size; ++i) start[i] = static_cast<float>(i % 7) - 2.5f;
    std::vector<float> back = start;
    rotation.apply(back.data());
    rotation.undo(back.data());
    for (int64_t i = 0; i < size; ++i) EXPECT_NEAR(back[i], start[i], 1e-4) << size;
    std::vector<std::vector<float>> rows;
    for (int64_t i = 0; i < size; ++i) {
      std::vector<float> row(size, 0.0f);
      row[i] = 1;
      rotation.apply(row.data());
      rows.push_back(std::move(row));
    }
    for (int64_t i = 0; i < size; i += std::max<int64_t>(1, size / 16)) {
      for (int64_t j = 0; j < size; ++j) {
        double product = 0;
        for (int64_t k = 0; k < size; ++k) product += static_cast<double>(rows[i][k]) * rows[j][k];
        // f32 entries through log2(size) + 1 additions each.
        EXPECT_NEAR(product, i == j ? 1 : 0, 1e-5) << size << " " << i << " " << j;
      }
      // |cos + sin| ≤ √2.
      for (const float entry : rows[i])
        EXPECT_LE(std::fabs(entry), 1.415f / std::sqrt(static_cast<float>(size))) << size;
    }
  }
}

std::vector<float> logits_of(const Model& model, ThreadPool& pool) {
  Executor executor(model.config(), model.graph(), model.weights(),
                    {.max_context = 16, .isa = cpu::detected_isa()}, pool);
  KvCache cache = executor.make_cache(1, 16, DType::kF32);
  const std::vector<int32_t> ids = {1, 5, 9, 2, 7, 3, 8, 4};
  const int64_t starts[] = {0}, counts[] = {8};
  const ContiguousBatch batch(starts, counts, cache.page_tokens());
  executor.step(ids, batch.view(), cache);
  const int32_t rows[] = {0, 3, 7};
  const float* logits = executor.logits(rows);
  return {logits, logits + 3 * model.config().vocab_size};
}

TEST(RotationTest, a_rotated_model_computes_the_same_function_also_with_a_tied_head_and_biases) {
  ThreadPool pool(2);
  for (const char* name : {"llama_untied", "qwen2", "mistral"}) {
    ScratchDirectory scratch;
    const Model model = Model::open(with_tokenizer(scratch, name));
    const std::filesystem::path path = scratch.path() / "rotated";
    write_rotated(model, path, 3);
    const Model rotated = Model::open(path);
    EXPECT_FALSE(rotated.config().tie_word_embeddings);
    const std::vector<float> expected = logits_of(model, pool), actual = logits_of(rotated, pool);
    double largest = 0;
    for (const float value : expected) largest = std::max<double>(largest, std::fabs(value));
    // About 10 operations a layer, each a sum of up to a few hundred f32 products in another order.
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(actual[i], expected[i], 1e-4 * largest) << name << " " << i;
    bool differs = false;
    const Node& node = model.graph().node(model.graph().layer(0).begin + 1);
    const Tensor before = model.checkpoint()->load_f32(node.weight_name);
    const Tensor after = rotated.checkpoint()->load_f32(node.weight_name);
    for (int64_t i = 0; i < before.size(); ++i)
      differs |= std::fabs(before.data<float>()[i] - after.data<float>()[i]) > 1e-3;
    EXPECT_TRUE(differs) << name;
  }
}

}  // namespace
}  // namespace whit
