#include "api/report_data.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tiny_model.h"

namespace whit {
namespace {

// engine.json's records are free in form, and no digest is of them.
TEST(ReportDataTest, damaged_records_are_refused_in_words) {
  const testing::ScratchDirectory scratch;
  const Model source = Model::open(testing::with_tokenizer(scratch, "qwen2"));
  const Recipe recipe{
      .mode = "rtn", .scheme = QuantScheme::preset("w8a8", 32), .output = scratch.path() / "w8a8"};
  ThreadPool pool(1);
  quantize_model(source, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool);
  const auto path = recipe.output / "engine.json";
  const Json good = parse_json(read_file(path), "");
  EXPECT_NO_THROW(report_engine("a", Model::open(recipe.output), nullptr));
  for (const auto& [member, value] : std::vector<std::pair<const char*, Json>>{
           {"mixed", Json::array({1})},
           {"mixed", {{"groups", {5}}}},
           {"mixed", {{"groups", {{{"name", 5}}}}}},
           {"mixed", {{"groups", {{{"candidates", {{{"bits", "x"}}}}}}}}},
           {"report", {{{"name", 5}}}},
           {"quality", {{"kld", 0.5}, {"ppl_ratio", "x"}}},
           {"quality", {5}}}) {
    Json damaged = good;
    damaged[member] = value;
    write_file(path, damaged.dump());
    try {
      recommend(Json::array({report_engine("a", Model::open(recipe.output), nullptr)}));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidData) << damaged[member];
    }
  }
}

}  // namespace
}  // namespace whit
