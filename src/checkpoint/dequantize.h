// Exact conversion of stored elements to f32.
//
// "Exact" means the f32 operations that the formats' definition prescribes, one rounding each and
// no contraction: for a block type w = d·q or w = d·q + m (K-quants: d·(sub-scale) first), so every
// value is bit-equal to PyPI gguf's numpy reference. Formulae: ggml-quants.c's dequantize_row_*
// functions.
#pragma once

#include <cstdint>

#include "checkpoint/storage_type.h"

namespace whit {

// data holds elements / block_elements(type) blocks, with no alignment asked; elements is a
// multiple of block_elements. Throws kUnsupported where !is_readable_as_f32(type).
void dequantize(StorageType type, const uint8_t* data, int64_t elements, float* out);

// Index of the first NaN or infinity, or -1.
int64_t find_non_finite(const float* values, int64_t count);

}  // namespace whit
