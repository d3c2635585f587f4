#include "checkpoint/storage_type.h"

#include <fmt/format.h>

namespace whit {
namespace {

constexpr int kNoGgml = -1;

struct Row {
  std::string_view name;
  int64_t block_elements, block_bytes;
  int ggml_id;  // enum ggml_type
  bool in_safetensors, readable_as_f32;
};

// In the order of StorageType.
constexpr Row kTable[] = {
    {"F32", 1, 4, 0, true, true},
    {"F16", 1, 2, 1, true, true},
    {"BF16", 1, 2, 30, true, true},
    {"F64", 1, 8, 28, true, true},
    {"I8", 1, 1, 24, true, false},
    {"U8", 1, 1, kNoGgml, true, false},
    {"I16", 1, 2, 25, true, false},
    {"U16", 1, 2, kNoGgml, true, false},
    {"I32", 1, 4, 26, true, false},
    {"U32", 1, 4, kNoGgml, true, false},
    {"I64", 1, 8, 27, true, false},
    {"U64", 1, 8, kNoGgml, true, false},
    {"BOOL", 1, 1, kNoGgml, true, false},
    {"F8_E4M3", 1, 1, kNoGgml, true, false},
    {"F8_E5M2", 1, 1, kNoGgml, true, false},
    {"Q4_0", 32, 18, 2, false, true},
    {"Q4_1", 32, 20, 3, false, true},
    {"Q5_0", 32, 22, 6, false, true},
    {"Q5_1", 32, 24, 7, false, true},
    {"Q8_0", 32, 34, 8, false, true},
    {"Q2_K", 256, 84, 10, false, true},
    {"Q3_K", 256, 110, 11, false, true},
    {"Q4_K", 256, 144, 12, false, true},
    {"Q5_K", 256, 176, 13, false, true},
    {"Q6_K", 256, 210, 14, false, true},
    {"IQ4_NL", 32, 18, 20, false, true},
    {"IQ4_XS", 256, 136, 23, false, true},
};
static_assert(std::size(kTable) == static_cast<size_t>(StorageType::kIQ4_XS) + 1);

struct GgmlName {
  uint32_t id;
  std::string_view name;
};
constexpr GgmlName kUnreadable[] = {
    {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
    {21, "IQ3_S"}, {22, "IQ2_S"}, {29, "IQ1_M"},   {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"},
};

const Row& row(StorageType type) { return kTable[static_cast<size_t>(type)]; }

}  // namespace

std::string_view name(StorageType type) { return row(type).name; }
int64_t block_elements(StorageType type) { return row(type).block_elements; }
int64_t block_bytes(StorageType type) { return row(type).block_bytes; }
bool is_readable_as_f32(StorageType type) { return row(type).readable_as_f32; }

std::optional<StorageType> storage_type_from_safetensors(std::string_view dtype) {
  for (size_t i = 0; i < std::size(kTable); ++i)
    if (kTable[i].in_safetensors && kTable[i].name == dtype) return static_cast<StorageType>(i);
  return std::nullopt;
}

std::optional<StorageType> storage_type_from_ggml(uint32_t id) {
  for (size_t i = 0; i < std::size(kTable); ++i)
    if (kTable[i].ggml_id >= 0 && static_cast<uint32_t>(kTable[i].ggml_id) == id)
      return static_cast<StorageType>(i);
  return std::nullopt;
}

std::string ggml_type_name(uint32_t id) {
  if (const auto type = storage_type_from_ggml(id)) return std::string(name(*type));
  for (const GgmlName& other : kUnreadable)
    if (other.id == id) return std::string(other.name);
  return fmt::format("type {}", id);
}

StorageType storage_type_of(DType dtype) {
  constexpr StorageType kTypes[] = {StorageType::kF32, StorageType::kF16, StorageType::kBF16,
                                    StorageType::kI8,  StorageType::kU8,  StorageType::kI32,
                                    StorageType::kI64};
  return kTypes[static_cast<size_t>(dtype)];
}

}  // namespace whit
