// `whit convert`: any checkpoint as a Hugging Face directory, streamed tensor by tensor.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPieceElements =
    int64_t{1} << 20;  // 4 MiB of f32 at a time, more only where one row is longer
constexpr const char* kMarker = "whit_version";
constexpr std::array kFiles = {"config.json", "generation_config.json", "tokenizer.json",
                               "tokenizer_config.json", "model.safetensors"};

// Only a directory that holds nothing but files of this function, with its mark in the weights, may
// be replaced.
bool is_own_output(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) return false;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (std::find(kFiles.begin(), kFiles.end(), name) == kFiles.end()) return false;
  }
  try {
    return SafetensorsFile(directory / "model.safetensors").metadata().contains(kMarker);
  } catch (const Error&) {
    return false;  // not readable, so not recognisable as ours
  }
}

// Converts values in place to `dtype`; returns the bytes.
std::span<const uint8_t> narrow(std::vector<float>& values, int64_t count, DType dtype,
                                const std::string& tensor) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  if (dtype == DType::kF32) return {bytes, static_cast<size_t>(count) * sizeof(float)};
  // A 16-bit value lies at or before the f32 it came from, so going forward never overwrites what
  // is still to be read.
  auto* out = reinterpret_cast<uint8_t*>(values.data());
  const uint16_t infinity = dtype == DType::kF16 ? 0x7c00 : 0x7f80;
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i];
    const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    if ((bits & 0x7fff) >= infinity)
      throw Error(ErrorKind::kInvalidData,
                  "tensor {}: {} does not fit {}; convert to bf16 or f32 instead", tensor, value,
                  name(dtype));
    std::memcpy(out + 2 * i, &bits, sizeof(bits));
  }
  return {bytes, static_cast<size_t>(count) * sizeof(uint16_t)};
}

void write_weights(const std::vector<HfContents::Weight>& weights, const fs::path& path,
                   DType dtype) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const HfContents::Weight& weight : weights)
    entries.push_back({weight.name,
                       weight.read_rows    ? storage_type_of(dtype)
                       : weight.read_bytes ? weight.type
                                           : weight.stored->type,
                       weight.shape});
  SafetensorsWriter writer(path, entries, {{"format", "pt"}, {kMarker, WHIT_VERSION}});
  std::vector<float> piece;
  for (const HfContents::Weight& weight : weights) {
    if (!weight.read_rows && !weight.read_bytes) {
      writer.write(weight.name, weight.stored->data);
      continue;
    }
    const int64_t columns = weight.shape.empty() ? 1 : weight.shape.back();
    const int64_t rows = columns == 0 ? 0 : element_count(weight.shape) / columns;
    const int64_t step = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, columns));
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(row + step, rows);
      const int64_t count = (end - row) * columns;
      if (static_cast<int64_t>(piece.size()) < 2 * count) piece.resize(2 * count);  // I64 fits too
      if (weight.read_rows) {
        weight.read_rows(row, end, piece.data());
        writer.write(weight.name, narrow(piece, count, dtype, weight.name));
      } else {
        auto* bytes = reinterpret_cast<uint8_t*>(piece.data());
        weight.read_bytes(row, end, bytes);
        writer.write(weight.name, {bytes, static_cast<size_t>(count * block_bytes(weight.type))});
      }
    }
    if (weight.written) weight.written();
  }
  writer.finish();
}

}  // namespace

void write_hf_directory(const HfContents& contents, const fs::path& out, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16)
    throw Error(ErrorKind::kInvalidArgument,
                "weights cannot be written as {}; choose f32, f16 or bf16", name(dtype));
  OutputDirectory directory(out, is_own_output);
  Json config = contents.config;
  config["torch_dtype"] = dtype == DType::kF32   ? "float32"
                          : dtype == DType::kF16 ? "float16"
                                                 : "bfloat16";
  config.erase("dtype");  // the same key under its newer name, which would win
  write_file(directory.path() / "config.json", config.dump(1) + "\n");
  for (const auto& [file, text] : contents.text_files) write_file(directory.path() / file, text);
  write_weights(contents.weights, directory.path() / "model.safetensors", dtype);
  directory.commit();
}

void write_hf_directory(const Checkpoint& checkpoint, const fs::path& out, DType dtype) {
  HfContents contents;
  contents.config = checkpoint.config();
  contents.text_files = {{"generation_config.json", checkpoint.generation_config().dump(1) + "\n"},
                         {"tokenizer.json", checkpoint.tokenizer_json()},
                         {"tokenizer_config.json", checkpoint.tokenizer_config().dump(1) + "\n"}};
  for (const std::string& name : checkpoint.names()) {
    const StoredTensor& tensor = checkpoint.get(name);
    HfContents::Weight weight{.name = name, .shape = tensor.shape, .stored = &tensor};
    if (is_readable_as_f32(tensor.type)) {
      weight.read_rows = [&checkpoint, &tensor](int64_t begin, int64_t end, float* rows) {
        checkpoint.read_rows_f32(tensor, begin, end, rows);
      };
      weight.written = [&checkpoint, &tensor] { checkpoint.release(tensor); };
    }
    contents.weights.push_back(std::move(weight));
  }
  write_hf_directory(contents, out, dtype);
}

}  // namespace whit
