// The GGUF container, versions 2 and 3, little-endian: key-value pairs, tensor descriptions,
// aligned data.
//
// Source: ggml's docs/gguf.md. Arrays are kept as mapped bytes and decoded when asked for, so that
// opening a file costs a walk over its metadata. Nested arrays are refused, as ggml itself does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/stored_tensor.h"

namespace whit {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);  // maps the file
  // From bytes that outlive the object; `where` names them in messages.
  GgufFile(std::span<const uint8_t> bytes, std::string where);

  // Under ggml's names, shapes in row-major order (ggml's first dimension last).
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const StoredTensor* find(std::string_view name) const;
  const std::string& where() const { return where_; }
  uint32_t version() const { return version_; }
  std::span<const uint8_t> header() const {
    return header_;
  }  // everything before the tensors' data

  bool has(std::string_view key) const { return values_.contains(key); }
  // nullopt where the key is absent; kInvalidData naming file and key where the type is another
  // one.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(
      std::string_view key) const;  // an F32 as its shortest decimal: 1e-05, not 9.99…e-06
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(
      std::string_view key) const;  // an array, or one integer
  std::optional<std::vector<float>> floats(std::string_view key) const;
  uint64_t array_size(std::string_view key) const;  // 0 where absent

 private:
  struct Value {
    GgufType type;
    GgufType element;  // of an array
    uint64_t count;    // of an array
    std::span<const uint8_t> bytes;
  };
  class Reader;

  void parse(std::span<const uint8_t> bytes);
  void parse_values(Reader& reader, uint64_t count);
  void parse_tensors(Reader& reader, uint64_t count, std::span<const uint8_t> bytes);
  const Value* value(std::string_view key) const;
  const Value* array(std::string_view key) const;
  [[noreturn]] void throw_type(std::string_view key, std::string_view wanted) const;

  std::unique_ptr<MappedFile> file_;
  std::string where_;
  uint32_t version_ = 0;
  std::span<const uint8_t> header_;
  std::map<std::string_view, Value> values_;  // keys are views of the mapping
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace whit
