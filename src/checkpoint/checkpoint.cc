#include "checkpoint/checkpoint.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <map>
#include <mutex>

#include "base/error.h"
#include "checkpoint/contents.h"
#include "checkpoint/dequantize.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

// Row r of the half-split order (j, then j + Dh/2) among the interleaved rows of a head.
int64_t interleaved_row(int64_t row, int64_t head_rows) {
  const int64_t in_head = row % head_rows, half = head_rows / 2;
  return row - in_head + in_head % half * 2 + in_head / half;
}

std::string origin(const StoredTensor& tensor) {
  return tensor.file == nullptr ? std::string("memory") : tensor.file->path().string();
}

constexpr std::string_view kOtherTools =
    "checkpoints that other tools have quantized are not read here; use the original F32, F16 or "
    "BF16 model";

}  // namespace

struct Checkpoint::State {
  CheckpointContents contents;
  std::map<std::string_view, const StoredTensor*> index;
  std::once_flag tokenizer_once, tokenizer_config_once;
  std::string tokenizer_json;
  Json tokenizer_config;
};

Checkpoint Checkpoint::open(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status))
    throw Error(ErrorKind::kNotFound,
                "{} does not exist; give a Hugging Face model directory or a .gguf file",
                path.string());
  if (fs::is_directory(status)) return Checkpoint(read_hf_directory(path));
  if (path.extension() == ".safetensors")
    throw Error(ErrorKind::kInvalidArgument,
                "{}: give the directory that holds it, with config.json beside it", path.string());
  return Checkpoint(read_gguf(std::make_shared<const GgufFile>(path)));
}

Checkpoint::Checkpoint(CheckpointContents contents) : state_(std::make_unique<State>()) {
  state_->contents = std::move(contents);
  for (const StoredTensor& tensor : state_->contents.tensors)
    state_->index.emplace(tensor.name, &tensor);
}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

const Json& Checkpoint::config() const { return state_->contents.config; }
const Json& Checkpoint::generation_config() const { return state_->contents.generation_config; }
const std::string& Checkpoint::description() const { return state_->contents.description; }
bool Checkpoint::is_gguf() const { return state_->contents.is_gguf; }

const std::string& Checkpoint::tokenizer_json() const {
  std::call_once(state_->tokenizer_once,
                 [this] { state_->tokenizer_json = state_->contents.tokenizer_json(); });
  return state_->tokenizer_json;
}

const Json& Checkpoint::tokenizer_config() const {
  std::call_once(state_->tokenizer_config_once,
                 [this] { state_->tokenizer_config = state_->contents.tokenizer_config(); });
  return state_->tokenizer_config;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  result.reserve(state_->contents.tensors.size());
  for (const StoredTensor& tensor : state_->contents.tensors) result.push_back(tensor.name);
  return result;
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = state_->index.find(name);
  return found == state_->index.end() ? nullptr : found->second;
}

const StoredTensor& Checkpoint::get(std::string_view name) const {
  if (const StoredTensor* found = find(name)) return *found;
  std::string stem(name);
  if (stem.ends_with(".weight")) stem.resize(stem.size() - std::string_view(".weight").size());
  for (const char* packed : {".qweight", ".weight_packed", ".weight.absmax"})
    if (find(stem + packed) != nullptr)
      throw Error(ErrorKind::kUnsupported, "{}: tensor {} is there only as {}{}; {}", description(),
                  name, stem, packed, kOtherTools);
  throw Error(ErrorKind::kNotFound,
              "{}: tensor {} is missing; the download is incomplete, or config.json belongs to "
              "another model",
              description(), name);
}

void Checkpoint::read_rows_f32(const StoredTensor& tensor, int64_t row_begin, int64_t row_end,
                               float* out) const {
  if (row_begin < 0 || row_begin > row_end || row_end > tensor.rows())
    throw Error(ErrorKind::kInvalidArgument, "{}: rows {} to {} of tensor {} {} do not exist",
                origin(tensor), row_begin, row_end, tensor.name, to_string(tensor.shape));
  if (!is_readable_as_f32(tensor.type))
    throw Error(ErrorKind::kUnsupported,
                "{}: tensor {} holds {}, which is not a weight by itself; {}", origin(tensor),
                tensor.name, name(tensor.type), kOtherTools);
  const int64_t columns = tensor.row_size(), row_bytes = tensor.row_bytes();
  if (tensor.permuted_heads == 0) {
    dequantize(tensor.type, tensor.data.data() + row_begin * row_bytes,
               (row_end - row_begin) * columns, out);
  } else if (tensor.shape.size() == 1) {  // a bias: its elements are what a matrix has as rows
    std::vector<float> stored(columns);
    dequantize(tensor.type, tensor.data.data(), row_end > row_begin ? columns : 0, stored.data());
    for (int64_t i = 0; i < (row_end - row_begin) * columns; ++i)
      out[i] = stored[interleaved_row(i, columns / tensor.permuted_heads)];
  } else {
    const int64_t head_rows = tensor.rows() / tensor.permuted_heads;
    for (int64_t row = row_begin; row < row_end; ++row)
      dequantize(tensor.type, tensor.data.data() + interleaved_row(row, head_rows) * row_bytes,
                 columns, out + (row - row_begin) * columns);
  }
  const int64_t bad = find_non_finite(out, (row_end - row_begin) * columns);
  if (bad >= 0)
    throw Error(ErrorKind::kInvalidData,
                "{}: tensor {} {} holds {} at row {}, column {}; the file is damaged or the model "
                "was saved broken",
                origin(tensor), tensor.name, to_string(tensor.shape), out[bad],
                row_begin + bad / columns, bad % columns);
}

Tensor Checkpoint::load_f32(std::string_view name, const Shape& expected,
                            std::string_view implied_by) const {
  const StoredTensor& tensor = get(name);
  if (!expected.empty() && expected != tensor.shape)
    throw Error(ErrorKind::kInvalidData,
                "{}: tensor {} has shape {}, but {} in {} implies {}; weights and config belong to "
                "different models",
                origin(tensor), name, to_string(tensor.shape), implied_by,
                state_->contents.config_path.string(), to_string(expected));
  if (!is_readable_as_f32(tensor.type))
    read_rows_f32(tensor, 0, 0, nullptr);  // throws before memory is taken
  Tensor result(DType::kF32, tensor.shape);
  read_rows_f32(tensor, 0, tensor.rows(), result.data<float>());
  return result;
}

void Checkpoint::release(const StoredTensor& tensor) const {
  if (tensor.file != nullptr) tensor.file->drop_pages(tensor.data);
}

std::string Checkpoint::digest() const {
  constexpr size_t kSampleBytes = 512;
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  const auto add = [&](std::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(&state, &size, sizeof(size));
    XXH3_128bits_update(&state, text.data(), text.size());
  };
  add(config().dump(-1, ' ', false, Json::error_handler_t::replace));
  add(generation_config().dump(-1, ' ', false, Json::error_handler_t::replace));
  add(state_->contents.tokenizer_bytes());
  for (const StoredTensor& tensor : state_->contents.tensors) {
    add(tensor.name);
    add(name(tensor.type));
    add(to_string(tensor.shape));
    const std::string_view data(reinterpret_cast<const char*>(tensor.data.data()),
                                tensor.data.size());
    if (tensor.file == nullptr) {  // memory has no name and no date that would tell it apart
      add(data);
      continue;
    }
    add(data.substr(0, kSampleBytes));
    add(data.substr(data.size() / 2, kSampleBytes));
    release(tensor);  // a kernel may have mapped megabytes around the samples
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(&state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace whit
