#include "checkpoint/gguf.h"

#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::GgufBuilder;
using test::raw;

GgufFile parse(const std::string& bytes) { return {test::bytes_of(bytes), "m.gguf"}; }

void refuses(ErrorKind kind, const std::vector<std::string>& parts, const std::string& bytes) {
  expect_error(kind, parts, [&] { parse(bytes); });
}
void refuses(const std::vector<std::string>& parts, const std::string& bytes) {
  refuses(ErrorKind::kInvalidData, parts, bytes);
}

TEST(GgufFile, gives_values_and_tensors) {
  const std::string bytes = GgufBuilder()
                                .u32("n", 7)
                                .f32("eps", 1e-5f)
                                .boolean("flag", true)
                                .string("text", "hello")
                                .strings("tokens", {"a", "", "c"})
                                .i32s("types", {1, -2})
                                .f32s("scores", {0.5f, -1.0f})
                                .pair("big", 10, raw(uint64_t{1} << 63))
                                .f32_tensor("w", {3, 2}, {1, 2, 3, 4, 5, 6})
                                .tensor("q", {32}, 8, std::string(34, '\1'))
                                .build();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.integer("n"), 7);
  EXPECT_EQ(file.number("n"), 7.0);
  EXPECT_EQ(file.number("eps"), 1e-5);  // not 9.99…e-06
  EXPECT_EQ(file.boolean("flag"), true);
  EXPECT_EQ(file.string("text"), "hello");
  EXPECT_EQ(file.strings("tokens"), (std::vector<std::string_view>{"a", "", "c"}));
  EXPECT_EQ(file.integers("types"), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(file.integers("n"), (std::vector<int64_t>{7}));
  EXPECT_EQ(file.floats("scores"), (std::vector<float>{0.5f, -1.0f}));
  EXPECT_EQ(file.array_size("tokens"), 3u);
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  ASSERT_NE(file.find("w"), nullptr);
  EXPECT_EQ(file.find("w")->shape, (Shape{2, 3}));
  EXPECT_EQ(file.find("w")->data.size(), 24u);
  EXPECT_EQ(file.find("q")->type, StorageType::kQ8_0);
  EXPECT_EQ(file.find("nothing"), nullptr);

  const auto wrong = [&](const char* wanted, const auto& read) {
    expect_error(ErrorKind::kInvalidData, {"m.gguf", "key", wanted}, read);
  };
  wrong("an integer", [&] { file.integer("eps"); });
  wrong("below 2^63", [&] { file.integer("big"); });
  wrong("a string", [&] { file.string("n"); });
  wrong("an array of strings", [&] { file.strings("types"); });
  wrong("an array", [&] { file.strings("text"); });
  wrong("floats", [&] { file.floats("types"); });
  wrong("true or false", [&] { file.boolean("n"); });
  wrong("a number", [&] { file.number("text"); });
  wrong("array of integers", [&] { file.integers("tokens"); });
}

TEST(GgufFile, reads_version_2_and_refuses_others) {
  GgufBuilder gguf;
  gguf.version = 2;
  EXPECT_EQ(parse(gguf.build()).version(), 2u);
  gguf.version = 1;
  refuses(ErrorKind::kUnsupported, {"version 1"}, gguf.build());
  gguf.version = 0x03000000;
  refuses(ErrorKind::kUnsupported, {"big-endian"}, gguf.build());
  gguf.magic = 0x04034b50;
  refuses({"m.gguf", "not a GGUF file"}, gguf.build());
  refuses({"not a GGUF file"}, "GG");
}

TEST(GgufFile, every_truncation_is_an_error_and_none_reads_past_the_end) {
  const std::string whole = test::tiny_gguf().strings("tokens", {"a", "bc"}).build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string part =
        whole.substr(0, size);  // a copy of its own, so that a sanitizer sees its end
    EXPECT_THROW(parse(part), Error) << size;
  }
  EXPECT_NO_THROW(parse(whole));
}

std::string header(uint64_t tensors, uint64_t pairs) {
  return "GGUF" + raw(uint32_t{3}) + raw(tensors) + raw(pairs);
}

TEST(GgufFile, refuses_counts_and_lengths_that_cannot_be) {
  const std::string padding(64, '\0');
  refuses({"keys cannot fit"}, header(0, UINT64_MAX) + padding);
  refuses({"tensors cannot fit"}, header(UINT64_MAX, 0) + padding);
  refuses({"wants 18446744073709551615 bytes"}, header(0, 1) + raw(UINT64_MAX) + padding);
  const std::string key = GgufBuilder::text("k");
  refuses({"key k", "overflows"}, [&] {
    return header(0, 1) + key + raw(uint32_t{9}) + raw(uint32_t{4}) + raw(UINT64_MAX / 2) + padding;
  }());
  refuses({"k", "wants"},
          header(0, 1) + key + raw(uint32_t{9}) + raw(uint32_t{0}) + raw(UINT64_MAX) + padding);
  refuses({"k", "wants"},
          header(0, 1) + key + raw(uint32_t{9}) + raw(uint32_t{8}) + raw(UINT64_MAX) + padding);
  refuses({"key k", "value type 13"}, header(0, 1) + key + raw(uint32_t{13}) + padding);
  refuses(ErrorKind::kUnsupported, {"key k", "arrays of arrays"},
          header(0, 1) + key + raw(uint32_t{9}) + raw(uint32_t{9}) + raw(uint64_t{1}) + padding);
  refuses({"key 0", "0 bytes"}, header(0, 1) + raw(uint64_t{0}) + raw(uint32_t{4}) + padding);
}

TEST(GgufFile, refuses_duplicate_names) {
  refuses({"key n", "twice"}, GgufBuilder().u32("n", 1).u32("n", 2).build());
  refuses({"tensor w", "twice"},
          GgufBuilder().f32_tensor("w", {1}, {1}).f32_tensor("w", {1}, {1}).build());
}

TEST(GgufFile, refuses_tensors_that_cannot_be) {
  refuses({"tensor w", "5 dimensions"},
          GgufBuilder().f32_tensor("w", {1, 1, 1, 1, 1}, {1}).build());
  refuses({"tensor w", "dimension 0 = 0"}, GgufBuilder().f32_tensor("w", {0}, {}).build());
  refuses({"tensor w", "overflows"},
          GgufBuilder().describe("w", {1ull << 40, 1ull << 40}, 0, 0).build());
  refuses({"tensor w", "out of range"}, GgufBuilder().describe("w", {1ull << 63}, 0, 0).build());
  refuses({"tensor w", "whole blocks of Q4_K"},
          GgufBuilder().tensor("w", {32}, 12, std::string(144, '\0')).build());
  refuses(
      {"tensor w", "multiple of the alignment"},
      GgufBuilder().f32_tensor("v", {16}, std::vector<float>(16)).describe("w", {1}, 0, 4).build());
  refuses({"tensor w", "truncated", "download"}, GgufBuilder().describe("w", {8}, 0, 64).build());
  refuses({"tensor w", "truncated"}, GgufBuilder().describe("w", {8}, 0, UINT64_MAX - 31).build());
  refuses({"v and w overlap"}, GgufBuilder()
                                   .f32_tensor("v", {16}, std::vector<float>(16))
                                   .describe("w", {1}, 0, 32)
                                   .build());
  refuses(ErrorKind::kUnsupported, {"tensor w", "IQ2_XXS", "another quantization"},
          GgufBuilder().describe("w", {256}, 16, 0).build());
  refuses(ErrorKind::kUnsupported, {"tensor w", "type 4000000000"},
          GgufBuilder().describe("w", {256}, 4000000000u, 0).build());
}

TEST(GgufFile, honours_the_alignment_key_and_refuses_bad_ones) {
  GgufBuilder gguf;
  gguf.alignment = 128;
  gguf.u32("general.alignment", 128).f32_tensor("v", {1}, {3}).f32_tensor("w", {1}, {4});
  const std::string bytes = gguf.build();
  float value;
  std::memcpy(&value, parse(bytes).find("w")->data.data(), sizeof(value));
  EXPECT_EQ(value, 4.0f);
  for (const uint32_t bad : {0u, 1u, 24u, 1u << 30})
    refuses({"general.alignment"}, GgufBuilder().u32("general.alignment", bad).build());
}

}  // namespace
}  // namespace whit
