#include "checkpoint/prequantized.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "quant/awq_layout.h"
#include "tensor/e4m3.h"

namespace whit {
namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw Error(ErrorKind::kUnsupported,
              "{}: \"quantization_config\": {}; quantize the original model instead", where, what);
}

// A tensor's elements; its bytes need not be aligned.
template <typename T>
class Elements {
 public:
  explicit Elements(const StoredTensor& tensor) : bytes_(tensor.data.data()) {}
  T operator[](int64_t index) const {
    T value;
    std::memcpy(&value, bytes_ + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return value;
  }

 private:
  const uint8_t* bytes_;
};

// The tensors of one module.
struct Module {
  const Checkpoint& checkpoint;
  const std::string& name;
  int64_t n, k;

  std::string tensor(std::string_view suffix) const { return fmt::format("{}.{}", name, suffix); }
  bool has(std::string_view suffix) const { return checkpoint.find(tensor(suffix)) != nullptr; }

  const StoredTensor& get(std::string_view suffix, std::initializer_list<StorageType> types,
                          const Shape& shape) const {
    const StoredTensor& found = checkpoint.get(tensor(suffix));
    if (std::find(types.begin(), types.end(), found.type) == types.end() || found.shape != shape)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {} is {} {}, but config.json's sizes and quantization imply {} {}",
                  checkpoint.description(), found.name, whit::name(found.type),
                  to_string(found.shape), whit::name(*types.begin()), to_string(shape));
    return found;
  }

  // Finite floating-point values, in row-major order.
  std::vector<float> floats(std::string_view suffix, const Shape& shape) const {
    const StoredTensor& stored =
        get(suffix, {StorageType::kF16, StorageType::kBF16, StorageType::kF32}, shape);
    std::vector<float> values(element_count(shape));
    checkpoint.read_rows_f32(stored, 0, stored.rows(), values.data());
    return values;
  }
};

// GPTQ and compressed-tensors can reorder the columns before they group them.
void check_order(const Module& module, std::string_view suffix, int64_t group_size) {
  if (!module.has(suffix)) return;
  const Elements<int32_t> groups(module.get(suffix, {StorageType::kI32}, {module.k}));
  for (int64_t k = 0; k < module.k; ++k)
    if (groups[k] != k / group_size)
      throw Error(ErrorKind::kUnsupported,
                  "{}: tensor {} puts column {} into group {}: groups of reordered columns "
                  "(desc_act, actorder \"group\") have no kernels; take a checkpoint made without, "
                  "or quantize the original model",
                  module.checkpoint.description(), module.tensor(suffix), k, groups[k]);
}

// Scales of int4 groups, at(row, group), rounded nowhere.
template <typename At>
void set_scales(const Module& module, const std::string& tensor, const At& at,
                QuantizedTensor& out) {
  const int64_t groups = out.view().groups();
  auto* scales = out.scales.data<uint16_t>();
  for (int64_t row = 0; row < out.n; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = at(row, g);
      const uint16_t bits = f32_to_f16(scale);
      if (f16_to_f32(bits) != scale)
        throw Error(ErrorKind::kUnsupported,
                    "{}: tensor {}: the scale {} of row {}, group {} is no 16-bit float (f16), as "
                    "scales of int4 groups are here; quantize the original model instead",
                    module.checkpoint.description(), tensor, scale, row, g);
      scales[row * groups + g] = bits;
    }
}

// From "scales" [G, N].
void set_scales_by_group(const Module& module, QuantizedTensor& out) {
  const std::vector<float> scales = module.floats("scales", {out.view().groups(), out.n});
  set_scales(
      module, module.tensor("scales"),
      [&](int64_t row, int64_t g) { return scales[g * out.n + row]; }, out);
}

// Zero points of int4 groups, at(row, group) in 0 … 15. Symmetric weights have none: theirs is 8.
template <typename At>
void set_zeros(const Module& module, const std::string& tensor, const At& at,
               QuantizedTensor& out) {
  const int64_t groups = out.view().groups(), row_bytes = ceil_div(groups, 2);
  for (int64_t row = 0; row < out.n; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int zero = at(row, g);
      if (!out.zeros.empty())
        out.zeros.data<uint8_t>()[row * row_bytes + g / 2] |=
            static_cast<uint8_t>(zero << (4 * (g & 1)));
      else if (zero != 8)
        throw Error(ErrorKind::kInvalidData,
                    "{}: tensor {}: row {}, group {} has the zero point {}, but config.json says "
                    "that the weights are symmetric",
                    module.checkpoint.description(), tensor, row, g, zero);
    }
}

void set_code(QuantizedTensor& out, int64_t row, int64_t k, uint32_t code) {
  out.data.data<uint8_t>()[row * ceil_div(out.k, 2) + k / 2] |=
      static_cast<uint8_t>((code & 15) << (4 * (k & 1)));
}

// Both sides of a matrix of words of eight codes.
void check_eights(const Module& module) {
  if (module.n % 8 == 0 && module.k % 8 == 0) return;
  throw Error(ErrorKind::kInvalidData,
              "{}: {} is [{}, {}] by config.json, which words of eight 4-bit codes cannot hold",
              module.checkpoint.description(), module.name, module.n, module.k);
}

QuantizedTensor make_int4(const Module& module, const QuantScheme& scheme) {
  return make_quantized(WeightFormat::kInt4Group, module.n, module.k, scheme.weights->group_size,
                        scheme.weights->symmetric);
}

// qweight I32 [K, N/8], qzeros I32 [G, N/8], scales F16 [G, N]; words as in quant/awq_layout.h.
PrequantizedLinear read_awq(const Module& module, const Prequantized::Group& group, bool) {
  check_eights(module);
  const int64_t n = module.n, k = module.k, words = n / 8;
  const int64_t groups = ceil_div(k, group.scheme.weights->group_size);
  PrequantizedLinear linear{.scheme = group.scheme, .weight = make_int4(module, group.scheme)};
  const Elements<uint32_t> codes(module.get("qweight", {StorageType::kI32}, {k, words}));
  // A cache line of words at a time, down all columns.
  for (int64_t first = 0; first < words; first += 16)
    for (int64_t column = 0; column < k; ++column)
      for (int64_t c = first; c < std::min(first + 16, words); ++c) {
        const uint32_t word = codes[column * words + c];
        for (int i = 0; i < 8; ++i)
          set_code(linear.weight, 8 * c + kAwqOrder[i], column, word >> (4 * i));
      }
  const Elements<uint32_t> zeros(module.get("qzeros", {StorageType::kI32}, {groups, words}));
  std::array<int, 8> bits_of{};
  for (int i = 0; i < 8; ++i) bits_of[kAwqOrder[i]] = 4 * i;
  set_zeros(
      module, module.tensor("qzeros"),
      [&](int64_t row, int64_t g) {
        return static_cast<int>((zeros[g * words + row / 8] >> bits_of[row % 8]) & 15);
      },
      linear.weight);
  set_scales_by_group(module, linear.weight);
  return linear;
}

// qweight I32 [K/8, N], word r = columns 8r … 8r+7; qzeros I32 [G, N/8]; scales F16 [G, N];
// g_idx I32 [K].
PrequantizedLinear read_gptq(const Module& module, const Prequantized::Group& group,
                             bool zeros_less_one) {
  check_eights(module);
  const int64_t n = module.n, k = module.k;
  const int64_t groups = ceil_div(k, group.scheme.weights->group_size);
  check_order(module, "g_idx", group.scheme.weights->group_size);
  PrequantizedLinear linear{.scheme = group.scheme, .weight = make_int4(module, group.scheme)};
  const Elements<uint32_t> codes(module.get("qweight", {StorageType::kI32}, {k / 8, n}));
  for (int64_t r = 0; r < k / 8; ++r)
    for (int64_t row = 0; row < n; ++row) {
      const uint32_t word = codes[r * n + row];
      for (int i = 0; i < 8; ++i) set_code(linear.weight, row, 8 * r + i, word >> (4 * i));
    }
  const Elements<uint32_t> zeros(module.get("qzeros", {StorageType::kI32}, {groups, n / 8}));
  set_zeros(
      module, module.tensor("qzeros"),
      [&](int64_t row, int64_t g) {
        const uint32_t stored = zeros[g * (n / 8) + row / 8] >> (4 * (row % 8));
        return static_cast<int>((stored + (zeros_less_one ? 1 : 0)) & 15);
      },
      linear.weight);
  set_scales_by_group(module, linear.weight);
  return linear;
}

// A byte of a "pack-quantized" row is what it holds + 128, four bits are + 8: unsigned codes, least
// significant first.
void read_int8(const Module& module, bool packed, QuantizedTensor& out) {
  const StoredTensor& codes =
      packed ? module.get("weight_packed", {StorageType::kI32}, {module.n, ceil_div(module.k, 4)})
             : module.get("weight", {StorageType::kI8}, {module.n, module.k});
  for (int64_t row = 0; row < module.n; ++row) {
    int8_t* to = out.data.data<int8_t>() + row * module.k;
    const uint8_t* from = codes.data.data() + row * codes.row_bytes();
    for (int64_t k = 0; k < module.k; ++k)
      to[k] = static_cast<int8_t>(packed ? from[k] ^ 0x80 : from[k]);
  }
  const std::vector<float> scales = module.floats("weight_scale", {module.n, 1});
  std::memcpy(out.scales.data<float>(), scales.data(), 4 * scales.size());
}

void read_int4(const Module& module, bool packed, QuantizedTensor& out) {
  const int64_t n = module.n, k = module.k, groups = out.view().groups();
  if (packed) {
    const StoredTensor& codes =
        module.get("weight_packed", {StorageType::kI32}, {n, ceil_div(k, 8)});
    const int64_t bytes = ceil_div(k, 2);
    for (int64_t row = 0; row < n; ++row)
      std::memcpy(out.data.data<uint8_t>() + row * bytes,
                  codes.data.data() + row * codes.row_bytes(), bytes);
  } else {
    const Elements<int8_t> codes(module.get("weight", {StorageType::kI8}, {n, k}));
    for (int64_t row = 0; row < n; ++row)
      for (int64_t column = 0; column < k; ++column) {
        const int code = codes[row * k + column] + 8;
        if (code < 0 || code > 15)
          throw Error(ErrorKind::kInvalidData, "{}: tensor {} holds {}, which is no 4-bit number",
                      module.checkpoint.description(), module.tensor("weight"), code - 8);
        set_code(out, row, column, static_cast<uint32_t>(code));
      }
  }
  const std::vector<float> scales = module.floats("weight_scale", {n, groups});
  set_scales(
      module, module.tensor("weight_scale"),
      [&](int64_t row, int64_t g) { return scales[row * groups + g]; }, out);
  if (out.zeros.empty()) return;
  const std::string tensor = module.tensor("weight_zero_point");
  if (packed) {
    const Elements<uint32_t> zeros(
        module.get("weight_zero_point", {StorageType::kI32}, {ceil_div(n, 8), groups}));
    set_zeros(
        module, tensor,
        [&](int64_t row, int64_t g) {
          return static_cast<int>((zeros[row / 8 * groups + g] >> (4 * (row % 8))) & 15);
        },
        out);
  } else {
    const Elements<int8_t> zeros(module.get("weight_zero_point", {StorageType::kI8}, {n, groups}));
    set_zeros(
        module, tensor,
        [&](int64_t row, int64_t g) {
          const int zero = zeros[row * groups + g] + 8;
          if (zero < 0 || zero > 15)
            throw Error(ErrorKind::kInvalidData, "{}: tensor {} holds {}, which is no 4-bit number",
                        module.checkpoint.description(), tensor, zero - 8);
          return zero;
        },
        out);
  }
}

// "float-quantized": e4m3, one scale a row.
void read_fp8(const Module& module, QuantizedTensor& out) {
  const StoredTensor& codes = module.get("weight", {StorageType::kF8E4M3}, {module.n, module.k});
  for (int64_t i = 0; i < module.n * module.k; ++i)
    if (e4m3_is_nan(codes.data[i]))
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {} holds NaN at element {}; the file is damaged",
                  module.checkpoint.description(), codes.name, i);
  std::memcpy(out.data.data<uint8_t>(), codes.data.data(), codes.data.size());
  const std::vector<float> scales = module.floats("weight_scale", {module.n, 1});
  std::memcpy(out.scales.data<float>(), scales.data(), 4 * scales.size());
}

PrequantizedLinear read_compressed(const Module& module, const Prequantized::Group& group, bool) {
  PrequantizedLinear linear{.scheme = group.scheme};
  if (weight_format(group.scheme) == WeightFormat::kFp8Channel) {
    linear.weight = make_quantized(WeightFormat::kFp8Channel, module.n, module.k, 0, true);
    read_fp8(module, linear.weight);
  } else if (group.scheme.weights->num_bits == 8) {
    linear.weight = make_quantized(WeightFormat::kInt8Channel, module.n, module.k, 0, true);
    read_int8(module, group.packed, linear.weight);
  } else {
    check_order(module, "weight_g_idx", group.scheme.weights->group_size);
    linear.weight = make_int4(module, group.scheme);
    read_int4(module, group.packed, linear.weight);
  }
  if (group.scheme.static_activations()) {
    linear.static_scale = module.floats("input_scale", {1})[0];
    if (!(linear.static_scale > 0))
      throw Error(ErrorKind::kInvalidData, "{}: tensor {} is {}", module.checkpoint.description(),
                  module.tensor("input_scale"), linear.static_scale);
  }
  return linear;
}

Prequantized::Group int4_group(const Json& config, bool symmetric, const std::string& where) {
  const std::string_view bits_key = config.contains("w_bit") ? "w_bit" : "bits";
  const std::string_view size_key = config.contains("q_group_size") ? "q_group_size" : "group_size";
  const int64_t bits = json_get<int64_t>(config, bits_key, where);
  if (bits != 4) refuse(where, fmt::format("{} {} have no kernels, only 4 have", bits, bits_key));
  const int64_t group_size = json_get<int64_t>(config, size_key, where);
  if (group_size != 32 && group_size != 64 && group_size != 128)
    refuse(where,
           fmt::format("{} {} has no kernels, only 32, 64 and 128 have", size_key, group_size));
  return {.scheme = QuantScheme::preset("w4a16", group_size, symmetric)};
}

std::string lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::vector<Prequantized::Group> awq_groups(const Json& config, const std::string& where) {
  const std::string version =
      lower_case(json_get_or<std::string>(config, "version", "gemm", where));
  if (version != "gemm")
    refuse(where, fmt::format("the AWQ layout \"{}\" is not read, only \"gemm\" is", version));
  return {int4_group(config, !json_get_or<bool>(config, "zero_point", true, where), where)};
}

std::vector<Prequantized::Group> gptq_groups(const Json& config, const std::string& where) {
  return {int4_group(config, json_get_or<bool>(config, "sym", true, where), where)};
}

// A scheme as compressed-tensors writes it: keys without a value are null.
Json without_nulls(const Json& json) {
  if (!json.is_object()) return json;
  Json result = Json::object();
  for (const auto& [key, value] : json.items())
    if (!value.is_null()) result[key] = without_nulls(value);
  return result;
}

std::vector<Prequantized::Group> compressed_groups(const Json& config, const std::string& where) {
  const std::string status =
      json_get_or<std::string>(config, "quantization_status", "compressed", where);
  if (status != "compressed")
    refuse(where, fmt::format("quantization_status is \"{}\", not \"compressed\"", status));
  const Json sparsity = config.value("sparsity_config", Json());
  if (sparsity.is_object() &&
      json_get_or<std::string>(sparsity, "format", "dense", where) != "dense")
    refuse(where, "sparse weights (sparsity_config) have no kernels");
  const Json table = config.value("config_groups", Json());
  if (!table.is_object() || table.empty()) refuse(where, "config_groups lists nothing");
  const std::string common = json_get_or<std::string>(config, "format", "pack-quantized", where);
  std::vector<Prequantized::Group> groups;
  for (const auto& [name, given] : table.items()) {
    if (!given.is_object()) refuse(where, fmt::format("config_groups: {} is no object", name));
    const Json group = without_nulls(given);
    const std::string format = json_get_or<std::string>(group, "format", common, where);
    const bool packed = format == "pack-quantized";
    if (!packed && format != "int-quantized" && format != "float-quantized" &&
        format != "naive-quantized")
      refuse(where, fmt::format("the format \"{}\" is not read, only pack-quantized, "
                                "int-quantized and float-quantized are",
                                format));
    if (!group.contains("weights")) refuse(where, fmt::format("{} has no \"weights\"", name));
    groups.push_back({.scheme = scheme_from_json(group, where), .packed = packed});
    const bool floats = groups.back().scheme.weights->type == NumberType::kFloat;
    if (floats ? packed || format == "int-quantized" : format == "float-quantized")
      refuse(where, fmt::format("{}: weights of this type are not stored as \"{}\"", name, format));
  }
  return groups;
}

}  // namespace

struct Prequantized::Method {
  std::string_view name;  // "quant_method"
  std::vector<Group> (*groups)(const Json& config, const std::string& where);
  PrequantizedLinear (*read)(const Module&, const Group&, bool zeros_less_one);
};

const Prequantized::Method Prequantized::kMethods[3] = {
    {"awq", awq_groups, read_awq},
    {"gptq", gptq_groups, read_gptq},
    {"compressed-tensors", compressed_groups, read_compressed},
};

std::optional<Prequantized> Prequantized::from_config(const Json& config,
                                                      const std::string& where) {
  const Json quantization = config.value("quantization_config", Json());
  if (quantization.is_null()) return std::nullopt;
  if (!quantization.is_object()) refuse(where, "not an object");
  const std::string method = json_get_or<std::string>(quantization, "quant_method", "", where);
  const auto* found = std::find_if(std::begin(kMethods), std::end(kMethods),
                                   [&](const Method& row) { return row.name == method; });
  if (found == std::end(kMethods))
    refuse(where, fmt::format("weights of quant_method \"{}\" are not read, only those of awq, "
                              "gptq and compressed-tensors are",
                              method));
  Prequantized result;
  result.method_ = found;
  result.groups_ = found->groups(quantization, where);
  // Before there were two versions nothing named the first.
  result.zeros_less_one_ =
      method == "gptq" &&
      json_get_or<std::string>(
          quantization, quantization.contains("checkpoint_format") ? "checkpoint_format" : "format",
          "gptq", where) != "gptq_v2";
  return result;
}

std::string_view Prequantized::method() const { return method_->name; }

bool Prequantized::holds(const Checkpoint& checkpoint, const std::string& module) const {
  return checkpoint.find(module + ".qweight") != nullptr ||
         checkpoint.find(module + ".weight_packed") != nullptr ||
         (checkpoint.find(module + ".weight_scale") != nullptr &&
          checkpoint.find(module + ".weight") != nullptr);
}

PrequantizedLinear Prequantized::read(const Checkpoint& checkpoint, const std::string& module,
                                      int64_t n, int64_t k) const {
  const Module tensors{checkpoint, module, n, k};
  // "targets" name modules by patterns of another language; what the tensors are tells the group.
  const auto fits = [&](const Group& group) {
    if (groups_.size() == 1) return true;
    if (group.packed != tensors.has("weight_packed")) return false;
    const StoredTensor* scale = checkpoint.find(module + ".weight_scale");
    const int64_t groups =
        group.scheme.weights->num_bits == 8 ? 1 : ceil_div(k, group.scheme.weights->group_size);
    if (scale == nullptr || scale->row_size() != groups) return false;
    return !group.packed || checkpoint.get(module + ".weight_packed").row_size() ==
                                ceil_div(k * group.scheme.weights->num_bits, 32);
  };
  const Group* chosen = nullptr;
  for (const Group& group : groups_) {
    if (!fits(group)) continue;
    if (chosen != nullptr && !(chosen->scheme == group.scheme))
      throw Error(ErrorKind::kUnsupported,
                  "{}: {} fits several of \"config_groups\"; take a checkpoint whose groups differ "
                  "in bits or group size, or quantize the original model",
                  checkpoint.description(), module);
    chosen = &group;
  }
  if (chosen == nullptr)
    throw Error(ErrorKind::kInvalidData, "{}: the tensors of {} fit none of \"config_groups\"",
                checkpoint.description(), module);
  return method_->read(tensors, *chosen, zeros_less_one_);
}

}  // namespace whit
