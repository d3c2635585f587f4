#include "api/state_dict.h"

#include <set>

#include "base/checked.h"
#include "checkpoint/contents.h"

namespace whit {
namespace {

constexpr const char* kWhere = "the state dict";

Json object_of(const std::string& text, const std::string& what) {
  if (text.empty()) return Json::object();
  Json json = parse_json(text, what);
  if (!json.is_object()) throw Error(ErrorKind::kInvalidData, "{}: must hold a JSON object", what);
  return json;
}

StoredTensor stored(const TensorView& tensor) {
  const std::optional<StorageType> type = storage_type_from_safetensors(tensor.dtype);
  if (!type || !is_readable_as_f32(*type))
    throw Error(ErrorKind::kInvalidArgument,
                "{}: tensor {} has dtype {}; weights are F32, F16, BF16 or F64", kWhere,
                tensor.name, tensor.dtype);
  uint64_t bytes = static_cast<uint64_t>(block_bytes(*type));
  for (const int64_t dim : tensor.shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes))
      throw Error(ErrorKind::kInvalidArgument, "{}: tensor {} has the impossible shape {}", kWhere,
                  tensor.name, to_string(tensor.shape));
  }
  if (bytes != tensor.bytes || (bytes > 0 && tensor.data == nullptr))
    throw Error(ErrorKind::kInvalidArgument,
                "{}: tensor {} of {} {} takes {} bytes, but {} bytes were given", kWhere,
                tensor.name, tensor.dtype, to_string(tensor.shape), bytes, tensor.bytes);
  return {.name = tensor.name,
          .shape = tensor.shape,
          .type = *type,
          .data = {static_cast<const uint8_t*>(tensor.data), tensor.bytes}};
}

}  // namespace

Checkpoint checkpoint_of(const StateDict& model) {
  CheckpointContents contents;
  contents.description = fmt::format("{} ({} tensors)", kWhere, model.tensors.size());
  contents.config_path = "config_json";
  contents.config = object_of(model.config_json, "config_json");
  contents.generation_config = object_of(model.generation_config_json, "generation_config_json");
  contents.tokenizer_json = [text = model.tokenizer_json] {
    if (text.empty())
      throw Error(ErrorKind::kNotFound, "{} came without tokenizer.json's text", kWhere);
    return text;
  };
  const Json tokenizer_config = object_of(model.tokenizer_config_json, "tokenizer_config_json");
  contents.tokenizer_config = [tokenizer_config] { return tokenizer_config; };
  contents.tokenizer_bytes = [text = model.tokenizer_json + model.tokenizer_config_json] {
    return text;
  };
  std::set<std::string_view> names;
  for (const TensorView& tensor : model.tensors) {
    if (!names.insert(tensor.name).second)
      throw Error(ErrorKind::kInvalidArgument, "{}: tensor {} comes twice", kWhere, tensor.name);
    contents.tensors.push_back(stored(tensor));
  }
  return Checkpoint(std::move(contents));
}

}  // namespace whit
