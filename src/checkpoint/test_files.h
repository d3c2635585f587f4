// Test support: a directory that goes away, and tiny safetensors and GGUF files made byte by byte,
// independently of the code under test, so that malformed ones can be made as well.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace whit::test {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "whit-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

// Runs `action`, which must throw an Error of `kind` whose message holds every one of `parts`.
template <typename Action>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "\"" << part << "\" is not in: " << error.what();
    return;
  }
  ADD_FAILURE() << "no error was thrown";
}

inline std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
template <typename T>
std::string raw(T value) {
  return raw(std::vector<T>{value});
}

inline std::string safetensors(const std::string& header, const std::string& data) {
  return raw(uint64_t{header.size()}) + header + data;
}

class GgufBuilder {
 public:
  uint32_t magic = 0x46554747, version = 3;
  uint64_t alignment = 32;

  static std::string text(std::string_view value) {
    return raw(uint64_t{value.size()}) + std::string(value);
  }

  GgufBuilder& pair(std::string_view key, uint32_t type, const std::string& payload) {
    pairs_ += text(key) + raw(type) + payload;
    ++pair_count_;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return pair(key, 4, raw(value)); }
  GgufBuilder& f32(std::string_view key, float value) { return pair(key, 6, raw(value)); }
  GgufBuilder& boolean(std::string_view key, bool value) {
    return pair(key, 7, raw(static_cast<uint8_t>(value)));
  }
  GgufBuilder& string(std::string_view key, std::string_view value) {
    return pair(key, 8, text(value));
  }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& values) {
    std::string payload = raw(uint32_t{8}) + raw(uint64_t{values.size()});
    for (const std::string& value : values) payload += text(value);
    return pair(key, 9, payload);
  }
  GgufBuilder& i32s(std::string_view key, const std::vector<int32_t>& values) {
    return pair(key, 9, raw(uint32_t{5}) + raw(uint64_t{values.size()}) + raw(values));
  }
  GgufBuilder& f32s(std::string_view key, const std::vector<float>& values) {
    return pair(key, 9, raw(uint32_t{6}) + raw(uint64_t{values.size()}) + raw(values));
  }
  // Dimensions in ggml's order, the contiguous one first.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                      const std::string& data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
    describe(name, dimensions, type, data_.size());
    data_ += data;
    return *this;
  }
  GgufBuilder& describe(std::string_view name, const std::vector<uint64_t>& dimensions,
                        uint32_t type, uint64_t offset) {
    tensors_ += text(name) + raw(static_cast<uint32_t>(dimensions.size())) + raw(dimensions) +
                raw(type) + raw(offset);
    ++tensor_count_;
    return *this;
  }
  GgufBuilder& f32_tensor(std::string_view name, const std::vector<uint64_t>& dimensions,
                          const std::vector<float>& values) {
    return tensor(name, dimensions, 0, raw(values));
  }

  std::string build() const {
    std::string result =
        raw(magic) + raw(version) + raw(tensor_count_) + raw(pair_count_) + pairs_ + tensors_;
    result.resize((result.size() + alignment - 1) / alignment * alignment, '\0');
    return result + data_;
  }

 private:
  std::string pairs_, tensors_, data_;
  uint64_t pair_count_ = 0, tensor_count_ = 0;
};

// Keys and tensors of a model with one layer, D = 4, H = 2, Hkv = 1, F = 8, V = 6; tests add what
// they look at.
inline GgufBuilder tiny_gguf(std::string architecture = "llama") {
  GgufBuilder gguf;
  const auto key = [&](const char* name) { return architecture + "." + name; };
  gguf.string("general.architecture", architecture)
      .u32(key("block_count"), 1)
      .u32(key("context_length"), 64)
      .u32(key("embedding_length"), 4)
      .u32(key("feed_forward_length"), 8)
      .u32(key("attention.head_count"), 2)
      .u32(key("attention.head_count_kv"), 1)
      .f32(key("attention.layer_norm_rms_epsilon"), 1e-5f)
      .f32(key("rope.freq_base"), 10000.0f);
  std::vector<float> embedding(24);
  for (size_t i = 0; i < embedding.size(); ++i) embedding[i] = static_cast<float>(i);
  return gguf.f32_tensor("token_embd.weight", {4, 6}, embedding);
}

}  // namespace whit::test
