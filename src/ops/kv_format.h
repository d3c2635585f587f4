// The choice of what a KV cache holds.
#pragma once

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/kv_layout.h"
#include "tensor/dtype.h"

namespace whit {

std::string_view name(KvType type);       // "f32", "f16", "bf16", "int8", "int4", "fp8"
std::string_view name(KeyLayout layout);  // "token", "channel"
// Throws kInvalidArgument with the possible names.
KvType parse_kv_type(std::string_view name);
KeyLayout parse_key_layout(std::string_view name);
// What a user may ask for; "auto" is the model's own.
inline constexpr std::array<std::string_view, 7> kKvCacheDtypes = {"auto", "f32",  "f16", "bf16",
                                                                   "int8", "int4", "fp8"};

struct KvFormat {
  KvType type = KvType::kF16;
  // Of integer caches, by layer; those of layers beyond the list are default_key_layout(type).
  std::vector<KeyLayout> key_layouts;

  KvFormat() = default;
  KvFormat(KvType kv_type, std::vector<KeyLayout> layouts = {})
      : type(kv_type), key_layouts(std::move(layouts)) {}
  // Of the 16-bit ones there is one.
  KvFormat(DType dtype)
      : type(dtype == DType::kF32  ? KvType::kF32
             : dtype == DType::kI8 ? KvType::kInt8
                                   : KvType::kF16) {}

  KeyLayout key_layout(int64_t layer) const;
  bool has_tails(int64_t layer) const;
};

// Where nothing was measured: int8 keys per token, int4 keys per channel.
KeyLayout default_key_layout(KvType type);

}  // namespace whit
