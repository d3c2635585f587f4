#include "api/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "base/thread_pool.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::ScratchDirectory;

class TuningTest : public ::testing::Test {
 protected:
  TuningTest() {
    if (const char* value = std::getenv("XDG_CACHE_HOME")) old_cache_ = value;
    ::setenv("XDG_CACHE_HOME", (scratch_.path() / "cache").c_str(), 1);
  }
  ~TuningTest() override {
    if (old_cache_)
      ::setenv("XDG_CACHE_HOME", old_cache_->c_str(), 1);
    else
      ::unsetenv("XDG_CACHE_HOME");
  }
  // As much of an engine as the key of its choice needs.
  fs::path engine(const std::string& digest) const {
    const fs::path path = scratch_.path() / digest;
    fs::create_directories(path);
    const Json manifest = {{"files", {{"weights.safetensors", {{"xxh3_128", digest}}}}}};
    write_file(path / "engine.json", manifest.dump());
    return path;
  }
  static Tuning two_trials() {
    return {.trials = {{cpu::detected_isa(), available_cpus(), 1000, 100},
                       {cpu::Isa::kPortable, 1, 2000, 200}},
            .chosen = 1};
  }
  std::optional<Tuning> stored(const fs::path& path) {
    warning_.clear();
    return stored_tuning(path, [this](const std::string& text) { warning_ += text; });
  }
  // What is stored for the engine, with one member changed.
  void edit(const fs::path& path, const std::function<void(Json&)>& change) {
    const std::string file = store_tuning(path, two_trials()).string();
    Json json = parse_json(read_file(file), file);
    change(json);
    write_file(file, json.dump());
  }
  void expect_ignored(const fs::path& path, const std::string& why) {
    EXPECT_FALSE(stored(path).has_value());
    EXPECT_THAT(warning_, HasSubstr(why));
    EXPECT_THAT(warning_, HasSubstr("--tune"));
  }
  ScratchDirectory scratch_;
  std::optional<std::string> old_cache_;
  std::string warning_;
};

TEST_F(TuningTest, what_is_stored_is_found_for_that_engine_and_no_other) {
  const fs::path mine = engine("aa"), other = engine("bb");
  EXPECT_FALSE(stored(mine).has_value());
  const fs::path file = store_tuning(mine, two_trials());
  EXPECT_EQ(file, tuning_path(mine));
  EXPECT_NE(file, tuning_path(other));
  const auto found = stored(mine);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->trials.size(), 2u);
  EXPECT_EQ(found->choice().isa, cpu::Isa::kPortable);
  EXPECT_EQ(found->choice().threads, 1);
  EXPECT_EQ(found->choice().decode_tokens_per_s, 200);
  EXPECT_FALSE(stored(other).has_value());
  EXPECT_FALSE(stored(scratch_.path()).has_value()) << "no engine";
  EXPECT_EQ(warning_, "");
}

TEST_F(TuningTest, a_file_that_is_damaged_or_foreign_is_ignored_with_a_warning) {
  const fs::path path = engine("aa");
  write_file(store_tuning(path, two_trials()), "{\"format\": ");
  expect_ignored(path, "not valid JSON");
  edit(path, [](Json& json) { json["format"] = "other"; });
  expect_ignored(path, "another format");
  edit(path, [](Json& json) { json["machine"]["cpu"] = "another CPU"; });
  expect_ignored(path, "another machine");
  edit(path, [](Json& json) { json["engine"] = "bb"; });
  expect_ignored(path, "another engine");
  edit(path, [](Json& json) { json["chosen"] = 2; });
  expect_ignored(path, "\"chosen\" is 2");
  edit(path, [](Json& json) { json["trials"] = 5; });
  expect_ignored(path, "must be a list");
  edit(path, [](Json& json) { json["trials"][1]["threads"] = available_cpus() + 1; });
  expect_ignored(path, "this machine has no");
  edit(path, [](Json& json) { json["trials"][0]["isa"] = "sse9"; });
  expect_ignored(path, "sse9");
}

TEST_F(TuningTest, an_engine_whose_manifest_is_damaged_has_no_choice) {
  const fs::path path = engine("aa");
  store_tuning(path, two_trials());
  for (const char* manifest :
       {"[]", "5", "{\"files\": 5}", "{\"files\": {\"weights.safetensors\": []}}", "{"}) {
    write_file(path / "engine.json", manifest);
    EXPECT_FALSE(stored(path).has_value()) << manifest;
    EXPECT_THROW(store_tuning(path, two_trials()), Error) << manifest;
  }
}

TEST_F(TuningTest, only_a_gain_that_is_no_noise_replaces_what_runs_anyway) {
  const TuningTrial usual = {cpu::Isa::kAvx2, 2, 1000, 100}, same = {cpu::Isa::kAvx2, 1, 1010, 101},
                    faster = {cpu::Isa::kAvx2, 1, 1000, 120};
  EXPECT_EQ(choose({usual, same}), 0u);
  EXPECT_EQ(choose({usual, same, faster}), 2u);
  EXPECT_EQ(choose({faster, usual}), 0u);
}

TEST_F(TuningTest, trials_begin_with_what_runs_without_tuning) {
  const Model source = Model::open(testing::with_tokenizer(scratch_, "qwen2"));
  const Recipe recipe{
      .mode = "rtn", .scheme = QuantScheme::preset("w8a8", 32), .output = scratch_.path() / "w8a8"};
  ThreadPool pool(2);
  quantize_model(source, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool);
  const Tuning tuning = tune(recipe.output);
  ASSERT_GE(tuning.trials.size(), available_cpus() > 1 ? 2u : 1u);
  EXPECT_EQ(tuning.trials[0].isa, cpu::detected_isa());
  EXPECT_EQ(tuning.trials[0].threads, available_cpus());
  for (const TuningTrial& trial : tuning.trials) EXPECT_GT(trial.decode_tokens_per_s, 0);
  EXPECT_EQ(tuning.chosen, choose(tuning.trials));
  store_tuning(recipe.output, tuning);
  EXPECT_EQ(stored(recipe.output)->choice().threads, tuning.choice().threads);
  EXPECT_THROW(tune(testing::golden_model("qwen2")), Error);
}

}  // namespace
}  // namespace whit
