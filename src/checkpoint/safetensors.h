// The safetensors format: u64 length N, N bytes of JSON header, then the tensors' bytes without
// holes.
//
// Source: the format's description in huggingface/safetensors' README. A file is accepted only when
// it keeps every rule there: header ≤ 100 MB and beginning with '{', no duplicate keys, string
// metadata, known dtypes, data_offsets that equal the size which dtype and shape imply and that
// tile the data section exactly.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/stored_tensor.h"

namespace whit {

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);  // maps the file
  // From bytes that outlive the object; `where` names them in messages.
  SafetensorsFile(std::span<const uint8_t> bytes, std::string where);

  // In file order; padding entries of SafetensorsWriter are left out.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const StoredTensor* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& where() const { return where_; }
  // Null where the object was made from bytes.
  const MappedFile* file() const { return file_.get(); }

 private:
  void parse(std::span<const uint8_t> bytes);

  std::unique_ptr<MappedFile> file_;
  std::string where_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

// Writes a file front to back, so that no more than the caller's current piece is in memory. The
// data section begins at a multiple of 64 bytes.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    StorageType type;
    Shape shape;
  };
  enum class Alignment {
    kNatural,  // tensors follow each other directly, as other tools write them
    kEach64,  // every tensor begins at a multiple of 64 bytes; u8 entries "__pad.N" fill what would
              // be forbidden holes
  };

  // Writes the header. Throws kInvalidArgument for duplicate names and for types that the format
  // cannot hold.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                    const std::map<std::string, std::string>& metadata,
                    Alignment alignment = Alignment::kNatural);

  // The next piece of tensor `name`; pieces and tensors come in the order of `entries`.
  void write(std::string_view name, std::span<const uint8_t> piece);
  void finish();  // throws kInvalidArgument where bytes are missing; must be called for the content
                  // to count

 private:
  void advance();  // past tensors that are complete

  OutputFile file_;
  std::string where_;
  std::vector<Entry> entries_;
  std::vector<uint64_t> padding_;  // bytes of padding after each entry
  size_t current_ = 0;
  uint64_t remaining_ = 0;  // bytes of the current entry still to come
};

}  // namespace whit
