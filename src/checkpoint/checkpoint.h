// A trained model as it lies on disk, read through one interface whatever its kind: a Hugging Face
// directory or a GGUF file. Tensor names are Hugging Face module paths, the config is config.json's
// content; weights stay in the mapped files and are converted to f32 only row range by row range.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "checkpoint/stored_tensor.h"
#include "tensor/tensor.h"

namespace whit {

struct CheckpointContents;

class Checkpoint {
 public:
  // A Hugging Face directory (model.safetensors, or model.safetensors.index.json and its shards) or
  // a .gguf file. Throws with the file and the remedy where it is incomplete, damaged or of a kind
  // that is not read.
  static Checkpoint open(const std::filesystem::path& path);
  explicit Checkpoint(CheckpointContents contents);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const Json& config() const;  // config.json; for a GGUF file rebuilt under Hugging Face's keys
  const Json& generation_config() const;  // {} where absent
  // Read or rebuilt at the first call; safe to call from several threads.
  const std::string& tokenizer_json() const;
  const Json& tokenizer_config()
      const;  // with "chat_template" from wherever the model keeps it; {} where absent
  const std::string& description() const;
  bool is_gguf() const;

  std::vector<std::string> names() const;  // in file order
  const StoredTensor* find(std::string_view name) const;
  const StoredTensor& get(
      std::string_view name) const;  // throws kNotFound naming tensor, checkpoint and remedy

  // Rows [row_begin, row_end) of the matrix [rows(), row_size()] as f32, a row permutation undone.
  // Throws kUnsupported for types that are no weights by themselves, kInvalidData naming tensor and
  // index for NaN or infinity. Thread-safe.
  void read_rows_f32(const StoredTensor& tensor, int64_t row_begin, int64_t row_end,
                     float* out) const;

  // The whole tensor. Where `expected` is not empty and is not the tensor's shape, throws
  // kInvalidData with both shapes and `implied_by`, the config keys that imply the expected one.
  Tensor load_f32(std::string_view name, const Shape& expected = {},
                  std::string_view implied_by = {}) const;

  // Tells the system that the tensor's pages are not needed soon.
  void release(const StoredTensor& tensor) const;

  // XXH3-128, in hexadecimal, of the configs, the stored tokenizer and every tensor's name, type,
  // shape and 1 KiB of its bytes: tells checkpoints apart within milliseconds. Of tensors in memory
  // every byte counts.
  std::string digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What a Hugging Face directory holds, its weights to be read piece by piece.
struct HfContents {
  struct Weight {
    std::string name;
    Shape shape;
    // Rows [row_begin, row_end) as f32, which become the directory's type.
    std::function<void(int64_t row_begin, int64_t row_end, float* out)> read_rows;
    // Or rows of `type` as they are written, f32 bytes or others.
    std::function<void(int64_t row_begin, int64_t row_end, uint8_t* out)> read_bytes;
    StorageType type = StorageType::kF32;
    const StoredTensor* stored = nullptr;  // copied as it is where there is neither
    std::function<void()> written;         // its source is not needed any more; may be empty
  };
  std::vector<Weight> weights;
  Json config;
  std::vector<std::pair<std::string, std::string>> text_files;  // name and content of the others
};

// Writes a Hugging Face directory with weights of `dtype` (f32, f16 or bf16), one piece of a tensor
// in memory at a time. The directory appears whole or not at all; an existing one is replaced only
// if this function made it.
void write_hf_directory(const HfContents& contents, const std::filesystem::path& out, DType dtype);

// Writes the model as a Hugging Face directory with weights of `dtype` (f32, f16 or bf16), one
// piece of a tensor in memory at a time. The directory appears whole or not at all; an existing one
// is replaced only if this function made it.
void write_hf_directory(const Checkpoint& checkpoint, const std::filesystem::path& out,
                        DType dtype);

}  // namespace whit
