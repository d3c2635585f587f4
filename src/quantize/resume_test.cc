#include "quantize/resume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/progress.h"
#include "quantize/rotate.h"
#include "tiny_model.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

// Ends the job at the first progress report of `layers` finished ones.
class InterruptAfter {
 public:
  explicit InterruptAfter(int64_t layers)
      : scope_(
            [this, layers](const ProgressState& state) {
              if (state.title.find("quantizing layer") != std::string_view::npos && !state.ended &&
                  state.done >= layers)
                stop_ = true;
            },
            [this] {
              if (stop_) throw Error(ErrorKind::kInterrupted, "interrupted");
            }) {}

 private:
  bool stop_ = false;
  JobScope scope_;
};

class ResumeTest : public ::testing::Test {
 protected:
  Recipe recipe(const std::string& mode, const std::string& scheme, const std::string& name) {
    return {
        .mode = mode, .scheme = QuantScheme::preset(scheme, 32), .output = scratch_.path() / name};
  }
  QuantizeSummary run(const Recipe& recipe, int threads = 1) {
    ThreadPool pool(threads);
    return quantize_model(model_, {&recipe, 1}, &data_,
                          {.isa = cpu::detected_isa(),
                           .checkpoints = QuantizeOptions::Checkpoints::kEveryLayer},
                          pool)
        .at(0);
  }
  void interrupt(const Recipe& recipe, int64_t layers) {
    const InterruptAfter interruption(layers);
    try {
      run(recipe);
      FAIL() << "it was not interrupted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInterrupted);
      EXPECT_FALSE(fs::exists(recipe.output));
    }
  }
  std::map<std::string, std::string> content(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder))
      files[entry.path().filename().string()] = read_file(entry.path());
    return files;
  }
  // The layouts of integer keys are measured on the data itself; statistics cannot give them.
  static std::map<std::string, std::string> without_kv_layouts(
      std::map<std::string, std::string> files) {
    Json manifest = parse_json(files.at("engine.json"), "engine.json");
    manifest.erase("kv_cache");
    files["engine.json"] = manifest.dump();
    return files;
  }
  fs::path kept() {
    for (const auto& entry : fs::directory_iterator(scratch_.path()))
      if (entry.path().filename().string().find(".resume-") != std::string::npos)
        return entry.path();
    return {};
  }

  ScratchDirectory model_scratch_, scratch_;
  Model model_ = Model::open(with_tokenizer(model_scratch_, "llama_rope_llama3"));
  CalibrationData data_ = random_tokens(model_, 16, 24, 3);
};

TEST_F(ResumeTest, an_interrupted_run_ends_in_the_same_bytes) {
  for (const auto& [mode, scheme] :
       std::vector<std::pair<std::string, std::string>>{{"awq", "w4a8"},
                                                        {"smoothquant", "w8a8"},
                                                        {"auto", "w4a16"},
                                                        {"rtn", "w8a16"},
                                                        {"awq", "fp8"}}) {
    SCOPED_TRACE(mode);
    run(recipe(mode, scheme, "whole"));
    const Recipe broken = recipe(mode, scheme, "broken");
    fs::remove_all(broken.output);
    interrupt(broken, 1);
    ASSERT_FALSE(kept().empty());
    EXPECT_EQ(run(broken).resumed_layers, 1);
    EXPECT_EQ(content(scratch_.path() / "broken"), content(scratch_.path() / "whole"));
    EXPECT_TRUE(kept().empty());
  }
}

TEST_F(ResumeTest, channels_kept_where_they_pay_end_in_the_same_bytes_and_leave_nothing_behind) {
  const auto of_name = [this](const std::string& name) {
    Recipe each = recipe("auto", "w4a16", name);
    each.salient = {.share = 0.05, .groups = SalientRequest::Groups::kWherePaying};
    return each;
  };
  run(of_name("whole"));
  interrupt(of_name("broken"), 1);
  ASSERT_FALSE(kept().empty());
  EXPECT_EQ(run(of_name("broken"), 2).resumed_layers, 1);
  EXPECT_EQ(content(scratch_.path() / "broken"), content(scratch_.path() / "whole"));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_.path()), fs::directory_iterator()), 2)
      << "two engines and nothing else";
}

TEST_F(ResumeTest, a_passing_copy_is_known_by_its_original_and_ends_in_the_same_bytes) {
  const auto quantize = [&](const std::string& copy, const std::string& name) {
    const fs::path path = scratch_.path() / fmt::format(".{}.partial-{}", name, copy);
    write_rotated(model_, path, 0);
    const Model rotated = Model::open(path);
    const Recipe each = recipe("auto", "w4a16", name);
    ThreadPool pool(1);
    const int resumed = quantize_model(rotated, {&each, 1}, &data_,
                                       {.isa = cpu::detected_isa(),
                                        .checkpoints = QuantizeOptions::Checkpoints::kEveryLayer,
                                        .source = "a rotated model",
                                        .original = &model_,
                                        .passing = path},
                                       pool)
                            .at(0)
                            .resumed_layers;
    fs::remove_all(path);
    return resumed;
  };
  EXPECT_EQ(quantize("a", "whole"), 0);
  {
    const InterruptAfter interruption(1);
    EXPECT_THROW(quantize("b", "broken"), Error);
  }
  ASSERT_TRUE(fs::exists(scratch_.path() / ".broken.partial-b")) << "as a killed process leaves it";
  EXPECT_EQ(quantize("c", "broken"), 1);
  EXPECT_EQ(content(scratch_.path() / "broken"), content(scratch_.path() / "whole"));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_.path()), fs::directory_iterator()), 2)
      << "two engines and nothing else";
}

TEST_F(ResumeTest, the_thread_count_does_not_change_a_byte) {
  for (const auto& [mode, scheme] :
       std::vector<std::pair<std::string, std::string>>{{"awq", "w4a8"},
                                                        {"smoothquant", "w8a8"},
                                                        {"awq-gptq", "w4a16"},
                                                        {"auto", "w4a8"},
                                                        {"rtn", "fp8"},
                                                        {"auto", "w4afp8"}}) {
    SCOPED_TRACE(mode);
    run(recipe(mode, scheme, "one"), 1);
    run(recipe(mode, scheme, "two"), 2);
    EXPECT_EQ(content(scratch_.path() / "one"), content(scratch_.path() / "two"));
  }
}

TEST_F(ResumeTest, other_inputs_do_not_go_on_with_it) {
  const Recipe first = recipe("awq", "w4a16", "engine");
  interrupt(first, 1);
  const fs::path left = kept();
  Recipe other = first;
  other.scheme = QuantScheme::preset("w4a8", 32);
  EXPECT_EQ(run(other).resumed_layers, 0);
  EXPECT_TRUE(kept().empty()) << "a finished engine of that name has made it useless";
  fs::remove_all(first.output);
  interrupt(first, 1);
  data_.ids[5] ^= 1;
  EXPECT_EQ(run(first).resumed_layers, 0);
}

TEST_F(ResumeTest, a_damaged_checkpoint_is_begun_anew_and_said) {
  const Recipe broken = recipe("awq", "w4a16", "engine");
  run(recipe("awq", "w4a16", "whole"));
  for (const std::string name : {"checkpoint.json", "layers-0", "state-1-0"}) {
    SCOPED_TRACE(name);
    interrupt(broken, 1);
    const fs::path file = kept() / name;
    std::string bytes = read_file(file);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    write_file(file, bytes);
    const QuantizeSummary summary = run(broken);
    EXPECT_EQ(summary.resumed_layers, 0);
    ASSERT_FALSE(summary.warnings.empty());
    EXPECT_THAT(summary.warnings[0], HasSubstr("begun anew"));
    EXPECT_EQ(content(scratch_.path() / "engine"), content(scratch_.path() / "whole"));
    fs::remove_all(broken.output);
  }
}

// Digests vouch for what was written, not for who wrote it.
TEST_F(ResumeTest, a_forged_checkpoint_is_not_followed) {
  const Recipe broken = recipe("awq", "w4a16", "engine");
  const fs::path outside = scratch_.path() / "outside";
  std::string refusal;
  const auto resumed = [&](const std::function<void(Json&)>& forge) {
    refusal.clear();
    fs::remove_all(broken.output);
    interrupt(broken, 1);
    const fs::path index = kept() / "checkpoint.json";
    write_file(outside, read_file(kept() / "state-1-0"));
    Json body = parse_json(parse_json(read_file(index), "")["body"].get<std::string>(), "");
    forge(body);
    const std::string text = body.dump();
    write_file(index, Json{{"body", text},
                           {"xxh3_128",
                            digest({reinterpret_cast<const uint8_t*>(text.data()), text.size()})}}
                          .dump());
    try {
      const QuantizeSummary summary = run(broken);
      if (!summary.warnings.empty()) refusal = summary.warnings[0];
      return summary.resumed_layers;
    } catch (const Error& error) {
      refusal = error.what();
      return -1;
    }
  };
  ASSERT_EQ(resumed([](Json&) {}), 1);
  EXPECT_EQ(resumed([](Json& body) { body["stream"][0]["file"] = "../outside"; }), 0);
  EXPECT_TRUE(fs::exists(outside)) << "files that a checkpoint names are removed with the next";
  EXPECT_THAT(refusal, HasSubstr("../outside"));
  for (const Json& done : {Json(-1), Json(0), Json("1"), Json()}) {
    EXPECT_LT(resumed([&](Json& body) { body["done"] = done; }), 1) << done;
    EXPECT_THAT(refusal, HasSubstr("done")) << done;
  }
  for (const char* member : {"logs", "stream", "reports", "coverage", "profiles"})
    for (const Json& value : {Json(7), Json::array({7}), Json::object()}) {
      EXPECT_LT(resumed([&](Json& body) { body[member] = value; }), 1) << member << value;
      EXPECT_THAT(refusal, ::testing::Not(HasSubstr("json.exception"))) << member << value;
    }
  EXPECT_LT(resumed([](Json& body) { body["done"] = 7; }), 1);
  EXPECT_LT(resumed([](Json& body) { body["stream"] = Json::array(); }), 1);
  EXPECT_LT(resumed([](Json& body) { body["stream"][0]["shape"] = {1, -1}; }), 1);
  EXPECT_EQ(resumed([](Json&) {}), 1) << "what could not be continued has gone";
}

TEST_F(ResumeTest, two_processes_do_not_share_a_directory) {
  const Recipe broken = recipe("awq", "w4a16", "engine");
  interrupt(broken, 1);
  const std::string name = kept().filename().string();
  Checkpointer other(broken.output, name.substr(name.rfind('-') + 1),
                     QuantizeOptions::Checkpoints::kEveryLayer);
  EXPECT_EQ(other.discarded(), "");
  try {
    run(broken);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another process"));
  }
  other.keep();
}

TEST_F(ResumeTest, statistics_give_the_engine_that_their_data_gives) {
  const fs::path path = scratch_.path() / "stats";
  ThreadPool pool(2);
  StatisticsInfo info{.model = "tiny", .model_digest = model_.checkpoint()->digest()};
  info.data.push_back(data_.description());
  const auto windows = calibration_windows(data_);
  info.tokens[0] = rows_of(windows, Split::kSearch);
  info.tokens[1] = rows_of(windows, Split::kHeldOut);
  {
    StatisticsWriter writer(path, model_.graph(), info);
    LayerStream stream(model_.config(), model_.graph(), model_.weights(), data_,
                       cpu::detected_isa(), pool);
    for (int layer = 0; layer < model_.graph().layers(); ++layer)
      writer.write(stream.observe_sums(layer, model_.weights(), LayerStream::Advance::kYes));
    writer.finish();
  }
  const StatisticsFile statistics(path);
  const QuantizeOptions options{.isa = cpu::detected_isa(), .statistics = &statistics};
  for (const auto& [mode, scheme] : std::vector<std::pair<std::string, std::string>>{
           {"awq", "w4a8"}, {"smoothquant", "w8a8"}, {"awq-gptq", "w4a16"}}) {
    SCOPED_TRACE(mode);
    run(recipe(mode, scheme, "direct"));
    const Recipe from_file = recipe(mode, scheme, "from-file");
    quantize_model(model_, {&from_file, 1}, nullptr, options, pool);
    EXPECT_EQ(without_kv_layouts(content(scratch_.path() / "from-file")),
              without_kv_layouts(content(scratch_.path() / "direct")));
  }
  const Recipe paired = recipe("auto", "w4a16", "paired");
  try {
    quantize_model(model_, {&paired, 1}, nullptr, options, pool);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("--calib"));
  }
}

}  // namespace
}  // namespace whit
