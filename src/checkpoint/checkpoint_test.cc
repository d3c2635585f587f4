#include "checkpoint/checkpoint.h"

#include <cstdlib>
#include <limits>

#include "checkpoint/contents.h"
#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::raw;
using test::safetensors;
using test::TemporaryDirectory;

const std::string kConfig = R"({"model_type":"llama","hidden_size":2})";

std::string one_tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                       const std::string& data) {
  return safetensors("{\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
                         R"(,"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
                     data);
}

void open_error(ErrorKind kind, const std::vector<std::string>& parts,
                const std::filesystem::path& path) {
  expect_error(kind, parts, [&] { Checkpoint::open(path); });
}

TEST(Checkpoint, reads_a_single_file_directory_in_every_float_type) {
  for (const auto& [dtype, data] : std::vector<std::pair<std::string, std::string>>{
           {"F32", raw(std::vector<float>{1, -2, 0.5f, 4})},
           {"F16", raw(std::vector<uint16_t>{0x3c00, 0xc000, 0x3800, 0x4400})},
           {"BF16", raw(std::vector<uint16_t>{0x3f80, 0xc000, 0x3f00, 0x4080})},
           {"F64", raw(std::vector<double>{1, -2, 0.5, 4})}}) {
    const TemporaryDirectory directory;
    directory.write("config.json", kConfig);
    directory.write("model.safetensors", one_tensor("w", dtype, "[2,2]", data));
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    EXPECT_FALSE(checkpoint.is_gguf());
    EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"w"}));
    EXPECT_EQ(checkpoint.config()["hidden_size"], 2);
    EXPECT_TRUE(checkpoint.generation_config().empty());
    const Tensor w = checkpoint.load_f32("w");
    EXPECT_EQ(w.shape(), (Shape{2, 2}));
    EXPECT_EQ(std::vector<float>(w.f32().begin(), w.f32().end()),
              (std::vector<float>{1, -2, 0.5f, 4}))
        << dtype;
    float row[2];
    checkpoint.read_rows_f32(checkpoint.get("w"), 1, 2, row);
    EXPECT_EQ(row[1], 4.0f);
    checkpoint.release(checkpoint.get("w"));
    EXPECT_EQ(checkpoint.load_f32("w").f32()[3], 4.0f);
  }
}

class Sharded : public ::testing::Test {
 protected:
  void write_index(const std::string& weight_map) {
    directory_.write("config.json", kConfig);
    directory_.write("a.safetensors", one_tensor("x", "F32", "[1]", raw(1.0f)));
    directory_.write("b.safetensors", one_tensor("y", "F32", "[1]", raw(2.0f)));
    directory_.write("model.safetensors.index.json", "{\"weight_map\":" + weight_map + "}");
  }
  TemporaryDirectory directory_;
};

TEST_F(Sharded, are_read_as_one) {
  write_index(R"({"x":"a.safetensors","y":"b.safetensors"})");
  const Checkpoint checkpoint = Checkpoint::open(directory_.path());
  EXPECT_EQ(checkpoint.load_f32("x").f32()[0], 1.0f);
  EXPECT_EQ(checkpoint.load_f32("y").f32()[0], 2.0f);
}

TEST_F(Sharded, an_absent_shard_is_named) {
  write_index(R"({"x":"a.safetensors","y":"c.safetensors"})");
  open_error(ErrorKind::kNotFound, {"index.json", "c.safetensors", "download"}, directory_.path());
}

TEST_F(Sharded, a_tensor_that_is_not_in_its_shard_is_named) {
  write_index(R"({"x":"b.safetensors"})");
  open_error(ErrorKind::kInvalidData, {"tensor x", "b.safetensors"}, directory_.path());
}

TEST_F(Sharded, shard_names_that_leave_the_directory_are_refused) {
  for (const char* name : {"../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "",
                           "a\\\\b", "a\\u0000b"}) {
    write_index(std::string(R"({"x":")") + name + "\"}");
    open_error(ErrorKind::kInvalidData, {"tensor x", "plain file name"}, directory_.path());
  }
}

TEST_F(Sharded, a_malformed_index_is_refused) {
  for (const char* map : {"{}", "[]", "7"}) {
    write_index(map);
    open_error(ErrorKind::kInvalidData, {"weight_map"}, directory_.path());
  }
  write_index(R"({"x":1})");
  open_error(ErrorKind::kInvalidData, {"tensor x", "string"}, directory_.path());
  directory_.write("model.safetensors.index.json", "{");
  open_error(ErrorKind::kInvalidData, {"index.json", "not valid JSON"}, directory_.path());
  write_index("[[[[[[[[1]]]]]]]]");
  open_error(ErrorKind::kInvalidData, {"index.json", "deeper"}, directory_.path());
}

// A parser that looks at all members again at the end of each takes minutes.
TEST_F(Sharded, the_time_an_index_takes_grows_with_its_size_alone) {
  std::string map = "{";
  for (int i = 0; i < 200'000; ++i) map += fmt::format("\"{}\":{{}},", i);
  write_index(map + "\"x\":0}");
  open_error(ErrorKind::kInvalidData, {"tensor 0", "string"}, directory_.path());
}

TEST(Checkpoint, says_what_is_missing_and_what_to_do) {
  const TemporaryDirectory directory;
  open_error(ErrorKind::kNotFound, {"does not exist", ".gguf"}, directory / "absent");
  open_error(ErrorKind::kNotFound, {"config.json", "download"}, directory.path());
  directory.write("m.gguf", "");
  open_error(ErrorKind::kNotFound, {"config.json", "m.gguf"}, directory.path());
  open_error(ErrorKind::kInvalidData, {"m.gguf", "not a GGUF file"}, directory / "m.gguf");
  directory.write("engine.json", "{}");
  open_error(ErrorKind::kNotFound, {"engine directory"}, directory.path());
  directory.write("config.json", "[1]");
  open_error(ErrorKind::kInvalidData, {"config.json", "object"}, directory.path());
  directory.write("config.json", kConfig);
  open_error(ErrorKind::kNotFound, {"model.safetensors", "download"}, directory.path());
  directory.write("pytorch_model.bin", "");
  open_error(ErrorKind::kUnsupported, {"pytorch_model.bin", "save_pretrained"}, directory.path());
  directory.write("model.safetensors", one_tensor("w", "F32", "[1]", raw(1.0f)).substr(0, 60));
  open_error(ErrorKind::kInvalidData, {"model.safetensors", "truncated"}, directory.path());
  open_error(ErrorKind::kInvalidArgument, {"directory that holds it"},
             directory / "model.safetensors");
}

class OneTensor : public ::testing::Test {
 protected:
  Checkpoint open(const std::string& file) {
    directory_.write("config.json", kConfig);
    directory_.write("model.safetensors", file);
    return Checkpoint::open(directory_.path());
  }
  TemporaryDirectory directory_;
};

TEST_F(OneTensor, a_missing_tensor_is_named) {
  const Checkpoint checkpoint = open(one_tensor("w", "F32", "[1]", raw(1.0f)));
  EXPECT_EQ(checkpoint.find("v"), nullptr);
  expect_error(ErrorKind::kNotFound, {"tensor v", directory_.path().string(), "incomplete"},
               [&] { checkpoint.get("v"); });
}

TEST_F(OneTensor, a_shape_that_the_config_does_not_imply_is_refused_with_both) {
  const Checkpoint checkpoint =
      open(one_tensor("w", "F32", "[2,1]", raw(std::vector<float>{1, 2})));
  expect_error(ErrorKind::kInvalidData,
               {"tensor w", "[2, 1]", "[2, 3]", "hidden_size", "config.json"}, [&] {
                 checkpoint.load_f32("w", {2, 3}, "hidden_size");
               });
  EXPECT_NO_THROW(checkpoint.load_f32("w", {2, 1}, "hidden_size"));
}

TEST_F(OneTensor, nan_and_infinity_are_refused_with_their_place) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Checkpoint checkpoint =
        open(one_tensor("w", "F32", "[2,3]", raw(std::vector<float>{1, 2, 3, 4, bad, 6})));
    expect_error(ErrorKind::kInvalidData, {"model.safetensors", "tensor w", "row 1, column 1"},
                 [&] { checkpoint.load_f32("w"); });
  }
}

TEST_F(OneTensor, packed_weights_of_other_tools_are_refused) {
  const Checkpoint checkpoint = open(one_tensor("proj.qweight", "I32", "[1]", raw(1)));
  expect_error(ErrorKind::kUnsupported, {"proj.weight", "proj.qweight", "other tools"},
               [&] { checkpoint.load_f32("proj.weight"); });
  expect_error(ErrorKind::kUnsupported, {"proj.qweight", "I32"},
               [&] { checkpoint.load_f32("proj.qweight"); });
}

TEST_F(OneTensor, rows_outside_it_are_refused) {
  const Checkpoint checkpoint =
      open(one_tensor("w", "F32", "[2,1]", raw(std::vector<float>{1, 2})));
  float out[4];
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{-1, 1}, {0, 3}, {2, 1}})
    EXPECT_THROW(checkpoint.read_rows_f32(checkpoint.get("w"), begin, end, out), Error);
}

TEST_F(OneTensor, the_digest_changes_with_a_weight) {
  const std::string first = open(one_tensor("w", "F32", "[1]", raw(1.0f))).digest();
  EXPECT_EQ(first.size(), 32u);
  EXPECT_EQ(open(one_tensor("w", "F32", "[1]", raw(1.0f))).digest(), first);
  EXPECT_NE(open(one_tensor("w", "F32", "[1]", raw(1.5f))).digest(), first);
}

TEST_F(OneTensor, the_chat_template_is_taken_from_where_the_model_keeps_it) {
  const auto chat = [&] {
    return open(one_tensor("w", "F32", "[1]", raw(1.0f))).tokenizer_config();
  };
  EXPECT_TRUE(chat().empty());
  directory_.write("tokenizer_config.json", R"({"bos_token":"<s>","chat_template":"inside"})");
  EXPECT_EQ(chat()["chat_template"], "inside");
  directory_.write(
      "tokenizer_config.json",
      R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})");
  EXPECT_EQ(chat()["chat_template"], "d");
  directory_.write("chat_template.json", R"({"chat_template":"own json"})");
  EXPECT_EQ(chat()["chat_template"], "own json");
  directory_.write("chat_template.jinja", "own jinja");
  EXPECT_EQ(chat()["chat_template"], "own jinja");
}

TEST_F(OneTensor, a_missing_tokenizer_is_named_when_it_is_asked_for) {
  const Checkpoint checkpoint = open(one_tensor("w", "F32", "[1]", raw(1.0f)));
  expect_error(ErrorKind::kNotFound, {"tokenizer.json", "download"},
               [&] { checkpoint.tokenizer_json(); });
  directory_.write("tokenizer.model", "");
  expect_error(ErrorKind::kNotFound, {"tokenizer.model", "save_pretrained"},
               [&] { checkpoint.tokenizer_json(); });
  directory_.write("tokenizer.json", "{}");
  EXPECT_EQ(checkpoint.tokenizer_json(), "{}");
}

}  // namespace
}  // namespace whit
