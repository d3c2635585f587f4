// A tensor as it lies in a checkpoint file: a name, a shape and the mapped bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/file.h"
#include "checkpoint/storage_type.h"
#include "tensor/tensor.h"

namespace whit {

struct StoredTensor {
  std::string name;  // Hugging Face module path, once it is in a Checkpoint
  Shape shape;       // row-major, last axis contiguous
  StorageType type = StorageType::kF32;
  std::span<const uint8_t> data;  // unaligned; exactly the bytes that shape and type imply
  // > 0: the rows of each of this many heads are interleaved (2j, 2j + 1) = (j, j + Dh/2), as
  // GGUF's llama architecture stores q and k. Reads through Checkpoint undo it; `data` is as
  // stored.
  int64_t permuted_heads = 0;
  const MappedFile* file = nullptr;  // null where the bytes came from memory

  // A matrix [rows, row_size], leading axes folded; a vector or scalar is one row.
  int64_t row_size() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const {
    if (shape.size() < 2) return 1;
    return row_size() == 0 ? 0 : element_count(shape) / row_size();
  }
  int64_t row_bytes() const { return row_size() / block_elements(type) * block_bytes(type); }
};

}  // namespace whit
