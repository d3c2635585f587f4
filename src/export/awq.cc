// AutoAWQ's "gemm" layout (0.2.9), which vLLM and transformers call awq:
//   qweight I32 [K, N/8]   four bits i of word c = column 8c + kAwqOrder[i]
//   qzeros  I32 [G, N/8]   the same;   scales F16 [G, N]
// Weights alone: activations of an int8 engine are floating point there.
#include <cstring>

#include "export/contents.h"
#include "quant/awq_layout.h"

namespace whit {
namespace {

// Words [begin, end) × N/8 of four-bit values, value(row of the weight, index).
template <typename Value>
void write_words(int64_t n, int64_t begin, int64_t end, uint8_t* out, const Value& value) {
  const int64_t words = n / 8;
  for (int64_t c = 0; c < words; ++c)
    for (int64_t index = begin; index < end; ++index) {
      uint32_t word = 0;
      for (int i = 0; i < 8; ++i)
        word |= static_cast<uint32_t>(value(8 * c + kAwqOrder[i], index)) << (4 * i);
      std::memcpy(out + 4 * ((index - begin) * words + c), &word, 4);
    }
}

int nibble(const uint8_t* bytes, int64_t index) {
  return (bytes[index / 2] >> (4 * (index & 1))) & 15;
}

}  // namespace

HfContents awq_contents(const Model& model) {
  int64_t group_size = 0;
  Json floating = Json::array();
  HfContents contents = export_contents(model, [&](HfContents& to, const Node& node,
                                                   const std::shared_ptr<LazyWeight>& lazy) {
    const LinearWeight& weight = lazy->get();
    const WeightView& view = weight.view;
    if (view.format == WeightFormat::kInt8Channel || view.format == WeightFormat::kFp8Channel ||
        !weight.salient_channels.empty())
      throw Error(ErrorKind::kUnsupported,
                  "{}: AWQ's layout holds int4 weights only; choose --format "
                  "compressed-tensors or dequantized",
                  node.name);
    if (view.format != WeightFormat::kInt4Group) {
      floating.push_back(node.name);
      return false;
    }
    check_whole_groups(node, view, "AWQ's layout");
    if (view.n % 8 != 0)
      throw Error(ErrorKind::kUnsupported,
                  "{}: {} outputs are no multiple of 8, as AWQ's layout needs; choose --format "
                  "compressed-tensors",
                  node.name, view.n);
    if (group_size != 0 && group_size != view.group_size)
      throw Error(ErrorKind::kUnsupported,
                  "{}: groups of {} beside groups of {}, and AWQ's layout has one size for all; "
                  "choose --format compressed-tensors",
                  node.name, view.group_size, group_size);
    group_size = view.group_size;
    const int64_t n = view.n, groups = view.groups();
    to.weights.push_back({.name = node.name + ".qweight",
                          .shape = {view.k, n / 8},
                          .read_bytes =
                              [lazy](int64_t begin, int64_t end, uint8_t* out) {
                                const WeightView& from = lazy->get().view;
                                const auto* codes = static_cast<const uint8_t*>(from.data);
                                write_words(from.n, begin, end, out, [&](int64_t row, int64_t k) {
                                  return nibble(codes + row * from.data_row_bytes(), k);
                                });
                              },
                          .type = StorageType::kI32});
    to.weights.push_back({.name = node.name + ".qzeros",
                          .shape = {groups, n / 8},
                          .read_bytes =
                              [lazy](int64_t begin, int64_t end, uint8_t* out) {
                                const WeightView& from = lazy->get().view;
                                write_words(from.n, begin, end, out, [&](int64_t row, int64_t g) {
                                  return from.zeros == nullptr
                                             ? 8
                                             : nibble(from.zeros + row * from.zero_row_bytes(), g);
                                });
                              },
                          .type = StorageType::kI32});
    to.weights.push_back({.name = node.name + ".scales",
                          .shape = {groups, n},
                          .read_bytes =
                              [lazy](int64_t begin, int64_t end, uint8_t* out) {
                                const WeightView& from = lazy->get().view;
                                const auto* scales = static_cast<const uint16_t*>(from.scales);
                                for (int64_t g = begin; g < end; ++g)
                                  for (int64_t row = 0; row < from.n; ++row, out += 2)
                                    std::memcpy(out, scales + row * from.groups() + g, 2);
                              },
                          .type = StorageType::kF16});
    return true;
  });
  if (group_size == 0)
    throw Error(ErrorKind::kUnsupported, "{}: no linear of a layer is int4; leave --format out",
                model.description());
  contents.config["quantization_config"] = {
      {"quant_method", "awq"},    {"bits", 4},
      {"group_size", group_size}, {"zero_point", true},
      {"version", "gemm"},        {"modules_to_not_convert", floating.empty() ? Json() : floating}};
  return contents;
}

}  // namespace whit
