// Tensor maps of keys and values in pages: boxes of rows of up to 128 bytes, swizzled.
#pragma once

#include "kernels/cuda/sm90/tensor_map.h"
#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

// The most tokens, up to a chunk, that lie behind one another in a page wherever a box begins.
inline int cache_box_tokens(const DeviceKv& cache) {
  int tokens = 16;
  while (tokens < kChunk && cache.page_tokens % (2 * tokens) == 0) tokens *= 2;
  return tokens;
}

inline CUtensorMap cache_map(const void* data, bool coded, int64_t dim, int box_columns,
                             int box_rows, CUtensorMapL2promotion promotion) {
  const unsigned element = coded ? 1 : 2;
  CUtensorMap map;
  // Rows are tokens of a head in a page; how many there are nobody need know here.
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(dim), cuuint64_t{1} << 31};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(dim) * element};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)},
                   ones[2] = {1, 1};
  const unsigned box_bytes = box_columns * element;
  const auto swizzle = box_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                       : box_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                         : CU_TENSOR_MAP_SWIZZLE_32B;
  if (tensor_map_encoder()(
          &map, coded ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
          const_cast<void*>(data), sizes, stride, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
          promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw Error(ErrorKind::kResource, "CUDA: no tensor map of heads of {} values", dim);
  return map;
}

}  // namespace whit::cuda
