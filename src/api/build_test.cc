#include "api/build.h"

#include <gtest/gtest.h>

#include "tiny_model.h"

namespace whit {
namespace {

// The backend says where an engine is made and where it runs; an engine of either runs on both.
TEST(BuildTest, a_cached_engine_has_one_name_for_all_backends) {
  const auto path = testing::golden_model("qwen2");
  const Model model = Model::open(path);
  BuildPlan plan{.model_path = path, .recipe = {.mode = "rtn"}};
  plan.recipe.scheme = QuantScheme::preset("w4a16", 32);
  const auto on_cpu = cached_engine_path(model, plan);
  plan.backend = Backend::kCuda;
  EXPECT_EQ(cached_engine_path(model, plan), on_cpu);
  plan.recipe.scheme = QuantScheme::preset("w4a8", 32);
  EXPECT_NE(cached_engine_path(model, plan), on_cpu);
}

}  // namespace
}  // namespace whit
