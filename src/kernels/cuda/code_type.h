// What codes of 8 bits are.
#pragma once

#include <cstdint>

namespace whit::cuda {

enum class CodeType : uint8_t { kInt8, kE4m3 };

}  // namespace whit::cuda
