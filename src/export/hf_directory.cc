#include "export/hf_directory.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "export/contents.h"

namespace whit {
namespace {

using Weight = HfContents::Weight;

Weight vector_weight(std::string name, int64_t size, std::function<Tensor()> read) {
  return {.name = std::move(name),
          .shape = {size},
          .read_rows = [read = std::move(read), size](int64_t begin, int64_t end, float* out) {
            if (begin != end) std::memcpy(out, read().f32().data(), size * sizeof(float));
          }};
}

HfContents dequantized_contents(const Model& model) {
  return export_contents(model, [](HfContents&, const Node&, const auto&) { return false; });
}

constexpr DType kAnyFloat[] = {DType::kF32, DType::kBF16, DType::kF16};
// The formats keep the scales in the type of the model; those of int4 groups are f16 numbers.
constexpr DType kScaleTypes[] = {DType::kF16, DType::kF32};
constexpr DType kAwqTypes[] = {DType::kF16};

constexpr ExportFormat kFormats[] = {
    {"dequantized", "floating-point weights, for every program", kAnyFloat, dequantized_contents},
    {"compressed-tensors", "low-bit weights for vLLM and transformers", kScaleTypes,
     compressed_tensors_contents},
    {"awq", "int4 weights in AutoAWQ's \"gemm\" layout", kAwqTypes, awq_contents},
};

}  // namespace

LazyWeight::LazyWeight(const Model& model, const Node& node)
    : read_([provider = model.weights(), &node] { return provider.linear(node); }) {}

const LinearWeight& LazyWeight::get() {
  if (!weight_) weight_ = read_();
  return *weight_;
}

void check_whole_groups(const Node& node, const WeightView& weight, std::string_view format) {
  if (weight.k % weight.group_size == 0) return;
  throw Error(ErrorKind::kUnsupported,
              "{}: {} inputs are no multiple of the group size {}, and {} has no short groups; "
              "quantize with --group-size 64 or 32",
              node.name, weight.k, weight.group_size, format);
}

HfContents export_contents(const Model& model, const AddLinear& add) {
  HfContents contents;
  contents.config = model.config().raw;
  contents.config.erase("quantization_config");
  for (auto& [name, text] : model.text_files())
    if (name != "config.json") contents.text_files.emplace_back(name, text);
  const WeightProvider provider = model.weights();
  for (const Node& node : model.graph().nodes()) {
    if (node.op == Op::kRmsNorm)
      contents.weights.push_back(vector_weight(node.weight_name, node.n,
                                               [provider, &node] { return provider.norm(node); }));
    const bool tied = node.weight_name != node.name + ".weight";  // stored by its other name
    if ((node.op != Op::kLinear && node.op != Op::kEmbedding) || tied) continue;
    const auto weight = std::make_shared<LazyWeight>(model, node);
    const bool quantized = node.op == Op::kLinear && node.layer >= 0 && add(contents, node, weight);
    weight->drop();  // it was looked at; it is read again when it is written
    if (!quantized)
      contents.weights.push_back({.name = node.weight_name,
                                  .shape = {node.n, node.k},
                                  .read_rows = [weight](int64_t begin, int64_t end, float* out) {
                                    dequantize_rows(weight->get(), begin, end, out);
                                  }});
    contents.weights.back().written = [weight] { weight->drop(); };
    if (node.bias)
      contents.weights.push_back(vector_weight(node.name + ".bias", node.n,
                                               [provider, &node] { return provider.bias(node); }));
  }
  return contents;
}

std::span<const ExportFormat> export_formats() { return kFormats; }

const ExportFormat& export_format(std::string_view name) {
  std::vector<std::string_view> names;
  for (const ExportFormat& format : kFormats) {
    if (format.name == name) return format;
    names.push_back(format.name);
  }
  throw Error(ErrorKind::kInvalidArgument, "\"{}\" is no export format; choose one of {}", name,
              fmt::join(names, ", "));
}

void export_hf_directory(const Model& model, const std::filesystem::path& out,
                         const ExportFormat& format, std::optional<DType> dtype) {
  if (dtype && std::find(format.dtypes.begin(), format.dtypes.end(), *dtype) == format.dtypes.end())
    throw Error(ErrorKind::kUnsupported,
                "the format {} cannot be written with {} beside the quantized weights: {}",
                format.name, name(*dtype), "its scales would be rounded; leave the type out");
  const DType type = dtype.value_or(format.dtypes[0]);
  if (model.checkpoint() != nullptr && model.prequantized() == nullptr &&
      format.contents == dequantized_contents)
    write_hf_directory(*model.checkpoint(), out, type);
  else
    write_hf_directory(format.contents(model), out, type);
}

}  // namespace whit
