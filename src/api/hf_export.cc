#include "api/hf_export.h"

#include <cstring>

#include "checkpoint/checkpoint.h"

namespace whit {
namespace {

using Weight = HfContents::Weight;

Weight vector_weight(const EngineDirectory& engine, std::string name, int64_t size) {
  return {.name = name,
          .shape = {size},
          .read_rows = [&engine, name, size](int64_t begin, int64_t end, float* out) {
            if (begin == end) return;
            const Tensor values = engine.vector(name, size);
            std::memcpy(out, values.data<float>(), size * sizeof(float));
          }};
}

HfContents contents_of(const Model& model) {
  const EngineDirectory& engine = *model.engine();
  HfContents contents;
  contents.config = model.config().raw;
  for (auto& [name, text] : model.text_files())
    if (name != "config.json") contents.text_files.emplace_back(name, text);
  for (const Node& node : model.graph().nodes()) {
    if (node.op == Op::kRmsNorm)
      contents.weights.push_back(vector_weight(engine, node.weight_name, node.n));
    const bool tied = node.weight_name != node.name + ".weight";  // stored by its other name
    if ((node.op != Op::kLinear && node.op != Op::kEmbedding) || tied) continue;
    contents.weights.push_back(
        {.name = node.weight_name,
         .shape = {node.n, node.k},
         .read_rows = [&engine, &node](int64_t begin, int64_t end, float* out) {
           dequantize_rows(engine.linear(node).view, begin, end, out);
         }});
    if (node.bias) contents.weights.push_back(vector_weight(engine, node.name + ".bias", node.n));
  }
  return contents;
}

}  // namespace

void export_hf_directory(const Model& model, const std::filesystem::path& out, DType dtype) {
  if (model.checkpoint() != nullptr)
    write_hf_directory(*model.checkpoint(), out, dtype);
  else
    write_hf_directory(contents_of(model), out, dtype);
}

}  // namespace whit
