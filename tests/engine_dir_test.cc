#include "engine/engine_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "api/loaded_model.h"
#include "engine/executor.h"
#include "engine/model.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using ::testing::HasSubstr;
using testing::ScratchDirectory;
using testing::with_tokenizer;

class EngineDirTest : public ::testing::Test {
 protected:
  std::filesystem::path make(const std::string& scheme) {
    const Model source = Model::open(with_tokenizer(scratch_, "qwen2"));
    const Recipe recipe{.mode = "rtn",
                        .scheme = QuantScheme::preset(scheme, 32),
                        .output = scratch_.path() / scheme};
    quantize_model(source, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool_);
    return recipe.output;
  }
  static std::string message_of(const std::filesystem::path& path) {
    try {
      const Model model = Model::open(path);
      ThreadPool pool(1);
      const Executor executor(model.config(), model.graph(), model.weights(), {.max_context = 16},
                              pool);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  static void edit_manifest(const std::filesystem::path& path,
                            const std::function<void(Json&)>& edit) {
    Json json = parse_json(read_file(path / "engine.json"), "engine.json");
    edit(json);
    write_file(path / "engine.json", json.dump());
  }
  ScratchDirectory scratch_;
  ThreadPool pool_{2};
};

TEST_F(EngineDirTest, stored_weights_are_the_rounded_ones_bit_for_bit) {
  const Model source = Model::open(golden_model("qwen2"));
  for (const std::string scheme : {"w4a16", "w8a8", "fp8", "w4afp8"}) {
    const Model engine = Model::open(make(scheme));
    for (const Node& node : source.graph().nodes()) {
      if (node.op != Op::kLinear || node.layer < 0) continue;
      const Tensor w = source.checkpoint()->load_f32(node.weight_name);
      const QuantScheme preset = QuantScheme::preset(scheme, 32);
      QuantizedTensor expected =
          make_quantized(weight_format(preset), node.n, node.k, preset.weights->group_size,
                         preset.weights->symmetric);
      quantize_rows_rtn(w.data<float>(), 0, node.n, nullptr, expected);
      std::vector<float> stored(node.n * node.k), wanted(node.n * node.k);
      dequantize_rows(engine.engine()->linear(node).view, 0, node.n, stored.data());
      dequantize_rows(expected.view(), 0, node.n, wanted.data());
      EXPECT_EQ(stored, wanted) << node.name;
    }
  }
}

TEST_F(EngineDirTest, a_flipped_bit_is_noticed_and_named) {
  const auto path = make("w8a8");
  const auto file = path / "weights.safetensors";
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(-5, std::ios::end);
  const char byte = static_cast<char>(stream.get());
  stream.seekp(-5, std::ios::end);
  stream.put(static_cast<char>(byte ^ 1));
  stream.close();
  EXPECT_THAT(message_of(path), HasSubstr("weights.safetensors"));
  EXPECT_THAT(message_of(path), HasSubstr("rebuild"));

  const Model later = Model::open(path, Verification::kLater);
  EXPECT_THROW(later.engine()->verify_weights(), Error);
  EXPECT_THROW(later.engine()->verify_weights(), Error);
  try {
    const LoadedModel loaded(path, {.max_context = 16}, pool_, TokenizerUse::kSoon);
    FAIL() << "a damaged engine was loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidData);
    EXPECT_THAT(error.what(), HasSubstr("rebuild"));
  }
}

TEST_F(EngineDirTest, damage_is_named_whatever_it_breaks_first) {
  const auto path = make("w8a8");
  const std::string content = read_file(path / "weights.safetensors");
  std::string header = content;
  header[9] ^= 1;  // in the safetensors header
  write_file(path / "weights.safetensors", header);
  EXPECT_THAT(message_of(path), HasSubstr("rebuild"));
  std::string renamed = content;  // the header stays readable, but a tensor is missing
  renamed[content.find("q_proj.weight\"")] = 'Q';
  write_file(path / "weights.safetensors", renamed);
  try {
    const LoadedModel loaded(path, {.max_context = 16}, pool_);
    FAIL() << "a damaged engine was loaded";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the content is not what"));
  }
}

TEST_F(EngineDirTest, a_tokenizer_made_beside_the_loading_is_ready_or_says_what_is_wrong) {
  const auto path = make("w4a8");
  const LoadedModel loaded(path, {.max_context = 16}, pool_, TokenizerUse::kSoon);
  EXPECT_EQ(loaded.model.tokenizer().encode("ab"), (std::vector<int32_t>{0, 1}));
  const std::string broken = "{}";
  write_file(path / "tokenizer.json", broken);
  edit_manifest(path, [&](Json& json) {
    json["files"]["tokenizer.json"] = {
        {"bytes", broken.size()},
        {"xxh3_128", digest({reinterpret_cast<const uint8_t*>(broken.data()), broken.size()})}};
  });
  const LoadedModel without(path, {.max_context = 16}, pool_, TokenizerUse::kSoon);
  EXPECT_THROW(without.model.tokenizer(), Error);
  EXPECT_THROW(without.model.tokenizer(), Error);
}

TEST_F(EngineDirTest, a_truncated_file_and_a_missing_one_are_named) {
  const auto path = make("w4a8");
  std::filesystem::resize_file(path / "weights.safetensors", 1000);
  EXPECT_THAT(message_of(path), HasSubstr("weights.safetensors"));
  std::filesystem::remove(path / "weights.safetensors");
  EXPECT_THAT(message_of(path), HasSubstr("weights.safetensors"));
}

TEST_F(EngineDirTest, a_newer_format_says_what_to_do) {
  const auto path = make("w4a8");
  edit_manifest(path, [](Json& json) { json["format_version"] = 2; });
  EXPECT_THAT(message_of(path), HasSubstr("newer"));
  EXPECT_THAT(message_of(path), HasSubstr("update"));
}

TEST_F(EngineDirTest, scales_that_are_called_two_level_and_are_not_are_refused) {
  const auto path = make("w4a8");
  edit_manifest(path, [](Json& json) {
    for (auto& [name, scheme] : json["schemes"].items())
      if (scheme["weights"].value("num_bits", 0) == 4) scheme["weights"]["two_level"] = true;
  });
  EXPECT_THAT(message_of(path), HasSubstr("two-level"));
  EXPECT_THAT(message_of(path), HasSubstr("proj.weight"));
}

TEST_F(EngineDirTest, numbers_that_are_NaN_are_refused_with_the_weight_s_name) {
  const auto path = make("fp8");
  std::string content = read_file(path / "weights.safetensors");
  {
    const Model engine = Model::open(path);
    const SafetensorsFile& file = engine.engine()->weights();
    const StoredTensor* weight = file.find("model.layers.1.mlp.up_proj.weight");
    ASSERT_NE(weight, nullptr);
    content[weight->data.data() + 33 - file.file()->bytes().data()] = 0x7f;
  }
  write_file(path / "weights.safetensors", content);
  edit_manifest(path, [&](Json& json) {
    json["files"]["weights.safetensors"]["xxh3_128"] =
        digest({reinterpret_cast<const uint8_t*>(content.data()), content.size()});
  });
  try {
    const LoadedModel loaded(path, {.max_context = 16}, pool_);
    FAIL() << "a weight that is NaN was loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidData);
    EXPECT_THAT(error.what(), HasSubstr("holds NaN"));
    EXPECT_THAT(error.what(), HasSubstr("proj.weight"));
  }
}

TEST_F(EngineDirTest, codes_of_another_type_than_the_plan_says_are_refused) {
  for (const auto& [written, read] : {std::pair("fp8", "w8a8"), std::pair("w8a8", "fp8")}) {
    const auto path = make(written);
    edit_manifest(path, [&, scheme = read](Json& json) {
      for (auto& [name, each] : json["schemes"].items())
        if (name == written) each = to_json(QuantScheme::preset(scheme));
    });
    EXPECT_THAT(message_of(path), HasSubstr("F8_E4M3"));
  }
}

TEST_F(EngineDirTest, a_plan_that_contradicts_the_weights_is_refused) {
  const auto path = make("w4a8");
  edit_manifest(path, [](Json& json) { json["linears"]["model.layers.0.mlp.up_proj"] = "w9a9"; });
  EXPECT_THAT(message_of(path), HasSubstr("model.layers.0.mlp.up_proj"));
  edit_manifest(path, [](Json& json) { json["linears"]["model.layers.0.mlp.up_proj"] = "w8a16"; });
  EXPECT_THAT(message_of(path), HasSubstr("model.layers.0.mlp.up_proj.weight"));
  edit_manifest(path, [](Json& json) {
    json["files"]["../../etc/passwd"] = {{"bytes", 1}, {"xxh3_128", ""}};
  });
  EXPECT_THAT(message_of(path), HasSubstr("not a file of this directory"));
  edit_manifest(path, [](Json& json) { json["schemes"] = 7; });
  EXPECT_THAT(message_of(path), ::testing::Not("no error"));
}

TEST_F(EngineDirTest, an_unfinished_engine_leaves_nothing_and_an_existing_one_in_place) {
  const auto path = make("w8a8");
  const std::string before = read_file(path / "engine.json");
  const Model source = Model::open(golden_model("qwen2"));
  {
    EngineManifest manifest;
    for (const Node& node : source.graph().nodes())
      if (node.op == Op::kLinear || node.op == Op::kEmbedding) {
        const std::string& name = node.weight_name;
        manifest.linears[name.substr(0, name.size() - 7)] = QuantScheme{};
      }
    const EngineWriter writer(path, source.graph(), manifest);
  }
  EXPECT_EQ(read_file(path / "engine.json"), before);
  int entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(scratch_.path())) {
    (void)entry;
    ++entries;
  }
  EXPECT_EQ(entries, 2);  // the source and the engine
}

TEST_F(EngineDirTest, a_directory_that_is_no_engine_is_never_replaced) {
  std::filesystem::create_directories(scratch_.path() / "precious");
  write_file(scratch_.path() / "precious/thesis.txt", "words");
  const Model source = Model::open(with_tokenizer(scratch_, "qwen2"));
  const Recipe recipe{
      .mode = "rtn", .scheme = QuantScheme::preset("w8a8"), .output = scratch_.path() / "precious"};
  EXPECT_THROW(quantize_model(source, {&recipe, 1}, nullptr, {}, pool_), Error);
  EXPECT_EQ(read_file(scratch_.path() / "precious/thesis.txt"), "words");
}

}  // namespace
}  // namespace whit
