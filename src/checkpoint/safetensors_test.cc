#include "checkpoint/safetensors.h"

#include <cstdlib>

#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::raw;
using test::safetensors;
using test::TemporaryDirectory;

SafetensorsFile parse(const std::string& bytes) { return {test::bytes_of(bytes), "m.safetensors"}; }

void refuses(ErrorKind kind, const std::vector<std::string>& parts, const std::string& bytes) {
  expect_error(kind, parts, [&] { parse(bytes); });
}
void refuses(const std::vector<std::string>& parts, const std::string& bytes) {
  refuses(ErrorKind::kInvalidData, parts, bytes);
}

const std::string kTwo =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
    R"("a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}  )";

TEST(SafetensorsFile, gives_tensors_in_file_order_with_metadata) {
  const std::string bytes =
      safetensors(kTwo, std::string("\1\2\3\4") + raw(std::vector<float>{1.5f, -2.0f}));
  const SafetensorsFile file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  const StoredTensor* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (Shape{2, 1}));
  EXPECT_EQ(b->type, StorageType::kF32);
  EXPECT_EQ(std::memcmp(b->data.data(), raw(std::vector<float>{1.5f, -2.0f}).data(), 8), 0);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(SafetensorsFile, accepts_scalars_and_empty_tensors) {
  const std::string bytes = safetensors(
      R"({"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})",
      raw(2.5));
  const SafetensorsFile file = parse(bytes);
  EXPECT_EQ(file.find("s")->rows(), 1);
  EXPECT_EQ(file.find("e")->data.size(), 0u);
  EXPECT_EQ(file.find("e")->rows(), 0);
}

TEST(SafetensorsFile, refuses_a_file_that_is_too_short_or_no_safetensors) {
  refuses({"m.safetensors", "truncated", "download"}, "");
  refuses({"truncated", "header"}, raw(uint64_t{50}) + "{}");
  refuses({"limit", "not a safetensors file"}, raw(uint64_t{1} << 60) + "{}");
  refuses({"does not begin"}, safetensors(" {}", ""));
  refuses({"does not begin"}, safetensors("", ""));
  refuses({"not valid JSON"}, safetensors("{\"a\":", ""));
  refuses({"not valid JSON"}, safetensors("{\"\xff\":1}", ""));
}

TEST(SafetensorsFile, refuses_truncated_and_overlong_data) {
  refuses({"m.safetensors", "tensor b", "truncated"}, safetensors(kTwo, "1234"));
  refuses({"damaged"}, safetensors(kTwo, std::string(13, 'x')));
}

std::string one(const std::string& entry) { return "{\"w\":" + entry + "}"; }

TEST(SafetensorsFile, refuses_headers_that_contradict_themselves) {
  const std::string data(8, '\0');
  refuses({"tensor w", "data_offsets", "[3]"},
          safetensors(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), data));
  refuses({"tensor w"},
          safetensors(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), data));
  refuses({"tensor w", "two numbers"},
          safetensors(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8]})"), data));
  refuses({"tensor w", "non-negative"},
          safetensors(one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), data));
  refuses({"tensor w", "non-negative"},
          safetensors(one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), data));
  refuses({"tensor w", "shape"}, safetensors(one(R"({"dtype":"F32","data_offsets":[0,8]})"), data));
  refuses({"tensor w", "dtype"}, safetensors(one("5"), data));
  refuses({"tensor w", "overflows"},
          safetensors(
              one(R"({"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,8]})"),
              data));
  refuses({"tensor w", "out of range"},
          safetensors(
              one(R"({"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]})"), ""));
  refuses(ErrorKind::kUnsupported, {"tensor w", "F4"},
          safetensors(one(R"({"dtype":"F4","shape":[2],"data_offsets":[0,8]})"), data));
  refuses({"__metadata__", "format"}, safetensors(R"({"__metadata__":{"format":1}})", ""));
  refuses({"nested"}, safetensors(one("[[[[[[[[1]]]]]]]]"), ""));
}

// Some seconds if each entry cost a look at all others.
TEST(SafetensorsFile, reads_a_header_of_very_many_tensors) {
  constexpr int kTensors = 40000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i)
    header += fmt::format(R"({}"t{}":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})",
                          i == 0 ? "" : ",", i, i, i + 1);
  const std::string bytes = safetensors(header + "}", std::string(kTensors, 'x'));
  const SafetensorsFile file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), size_t{kTensors});
  EXPECT_EQ(file.tensors()[kTensors - 1].name, fmt::format("t{}", kTensors - 1));
}

TEST(SafetensorsFile, refuses_holes_overlaps_and_duplicates) {
  const auto two = [](const std::string& first, const std::string& second,
                      const std::string& name) {
    return safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first + R"(},")" +
                           name + R"(":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                       std::string(9, '\0'));
  };
  refuses({"tensor b", "overlaps"}, two("[0,4]", "[3,7]", "b"));
  refuses({"tensor b", "holes"}, two("[0,4]", "[5,9]", "b"));
  refuses({"\"a\" appears twice"}, two("[0,4]", "[4,8]", "a"));
  refuses({"appears twice"},
          safetensors(one(R"({"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]})"), "x"));
}

TEST(SafetensorsFile, a_missing_file_is_named) {
  expect_error(ErrorKind::kNotFound, {"/nowhere/m.safetensors"},
               [] { SafetensorsFile("/nowhere/m.safetensors"); });
}

std::vector<SafetensorsWriter::Entry> odd_entries() {
  return {{"odd \"name\"", StorageType::kU8, {3}},
          {"empty", StorageType::kF32, {0}},
          {"w", StorageType::kF32, {2, 5}}};
}

void write_odd(const std::filesystem::path& path, SafetensorsWriter::Alignment alignment) {
  SafetensorsWriter writer(path, odd_entries(), {{"format", "pt"}}, alignment);
  writer.write("odd \"name\"", test::bytes_of("abc"));
  std::vector<float> values(10);
  for (int i = 0; i < 10; ++i) values[i] = static_cast<float>(i) / 4;
  const std::string text = raw(values);
  writer.write("w", test::bytes_of(text).first(7));
  writer.write("w", test::bytes_of(text).subspan(7));
  writer.finish();
}

TEST(SafetensorsWriter, what_it_writes_reads_back) {
  const TemporaryDirectory directory;
  for (const auto alignment :
       {SafetensorsWriter::Alignment::kNatural, SafetensorsWriter::Alignment::kEach64}) {
    write_odd(directory / "m.safetensors", alignment);
    const SafetensorsFile file(directory / "m.safetensors");
    ASSERT_EQ(file.tensors().size(), 3u);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    const StoredTensor* odd = file.find("odd \"name\"");
    ASSERT_NE(odd, nullptr);
    EXPECT_EQ(std::string(odd->data.begin(), odd->data.end()), "abc");
    const StoredTensor* w = file.find("w");
    ASSERT_NE(w, nullptr);
    EXPECT_EQ(w->shape, (Shape{2, 5}));
    float last;
    std::memcpy(&last, w->data.data() + 36, sizeof(last));
    EXPECT_EQ(last, 2.25f);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(odd->data.data()) % 64, 0u);
    if (alignment == SafetensorsWriter::Alignment::kEach64) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(w->data.data()) % 64, 0u);
    }
  }
}

TEST(SafetensorsWriter, refuses_bytes_out_of_order_and_missing_ones) {
  const TemporaryDirectory directory;
  SafetensorsWriter writer(directory / "m",
                           {{"a", StorageType::kU8, {4}}, {"b", StorageType::kU8, {1}}}, {});
  expect_error(ErrorKind::kInvalidArgument, {"b", "a"},
               [&] { writer.write("b", test::bytes_of("x")); });
  expect_error(ErrorKind::kInvalidArgument, {"5 bytes"},
               [&] { writer.write("a", test::bytes_of("12345")); });
  writer.write("a", test::bytes_of("1234"));
  expect_error(ErrorKind::kInvalidArgument, {"1 bytes of b"}, [&] { writer.finish(); });
  expect_error(ErrorKind::kInvalidArgument, {"taken"}, [&] {
    SafetensorsWriter(directory / "n", {{"a", StorageType::kU8, {4}}, {"a", StorageType::kU8, {1}}},
                      {});
  });
  expect_error(ErrorKind::kInvalidArgument, {"Q4_K"}, [&] {
    SafetensorsWriter(directory / "n", {{"a", StorageType::kQ4_K, {256}}}, {});
  });
}

TEST(SafetensorsWriter, pypi_safetensors_reads_its_files) {
  const char* python = std::getenv("WHIT_PYTHON");
  if (python == nullptr)
    GTEST_SKIP() << "WHIT_PYTHON names no Python interpreter that has safetensors and numpy";
  const TemporaryDirectory directory;
  for (const auto alignment :
       {SafetensorsWriter::Alignment::kNatural, SafetensorsWriter::Alignment::kEach64}) {
    write_odd(directory / "m.safetensors", alignment);
    directory.write(
        "check.py",
        "import sys\nfrom safetensors.numpy import load_file\nt = load_file(sys.argv[1])\n"
        "assert bytes(t['odd \"name\"']) == b'abc', t\nassert t['empty'].shape == (0,)\n"
        "assert t['w'].tolist() == [[0, .25, .5, .75, 1], [1.25, 1.5, 1.75, 2, 2.25]], t\n");
    const std::string command =
        fmt::format("'{}' '{}' '{}'", python, (directory / "check.py").string(),
                    (directory / "m.safetensors").string());
    EXPECT_EQ(std::system(command.c_str()), 0);
  }
}

}  // namespace
}  // namespace whit
