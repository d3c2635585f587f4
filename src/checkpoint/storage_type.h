// How a tensor's elements lie in a checkpoint file: plain types of both formats and ggml's
// block-quantized ones.
//
// A block type stores `block_elements` consecutive elements of one row in `block_bytes` bytes;
// plain types are blocks of one element. Sizes: safetensors' format description and ggml-common.h's
// block structs (QK_K = 256).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace whit {

enum class StorageType : uint8_t {
  // Plain; all of these can be in a safetensors file.
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kBool,
  kF8E4M3,
  kF8E5M2,
  // ggml's blocks.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
};

std::string_view name(StorageType type);  // "F32", "BF16", "Q4_K", …
int64_t block_elements(StorageType type);
int64_t block_bytes(StorageType type);

// True where dequantize() knows the type: what can be a weight by itself.
bool is_readable_as_f32(StorageType type);

std::optional<StorageType> storage_type_from_safetensors(std::string_view dtype);  // "F32", "I8", …
std::optional<StorageType> storage_type_from_ggml(uint32_t id);
std::string ggml_type_name(
    uint32_t id);  // also of types that are not readable: "IQ2_XXS", "type 99"

StorageType storage_type_of(DType dtype);

}  // namespace whit
