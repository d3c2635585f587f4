#include "ops/kv_format.h"

#include "base/error.h"

namespace whit {

std::string_view name(KvType type) {
  switch (type) {
    case KvType::kF32:
      return "f32";
    case KvType::kF16:
      return "f16";
    case KvType::kBF16:
      return "bf16";
    case KvType::kInt8:
      return "int8";
    case KvType::kInt4:
      return "int4";
    case KvType::kFp8:
      return "fp8";
  }
  return "";
}

std::string_view name(KeyLayout layout) {
  return layout == KeyLayout::kToken ? "token" : "channel";
}

KvType parse_kv_type(std::string_view text) {
  for (const KvType type :
       {KvType::kF32, KvType::kF16, KvType::kBF16, KvType::kInt8, KvType::kInt4, KvType::kFp8})
    if (name(type) == text) return type;
  throw Error(ErrorKind::kInvalidArgument,
              "\"{}\" is no type of keys and values; the possible ones are f32, f16, bf16, int8, "
              "int4 and fp8",
              text);
}

KeyLayout parse_key_layout(std::string_view text) {
  for (const KeyLayout layout : {KeyLayout::kToken, KeyLayout::kChannel})
    if (name(layout) == text) return layout;
  throw Error(ErrorKind::kInvalidArgument,
              "\"{}\" is no layout of keys; the possible ones are token and channel", text);
}

KeyLayout default_key_layout(KvType type) {
  return type == KvType::kInt4 ? KeyLayout::kChannel : KeyLayout::kToken;
}

KeyLayout KvFormat::key_layout(int64_t layer) const {
  return layer < static_cast<int64_t>(key_layouts.size()) ? key_layouts[layer]
                                                          : default_key_layout(type);
}

bool KvFormat::has_tails(int64_t layer) const { return kv_has_tails(type, key_layout(layer)); }

}  // namespace whit
