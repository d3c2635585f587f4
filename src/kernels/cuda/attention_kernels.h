// The two ways to attention; attention() in small_ops.h chooses.
#pragma once

#include <type_traits>

#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

// f(std::integral_constant<KvStorage, storage>), for templates of it.
template <typename F>
void with_storage(KvStorage storage, F f) {
  switch (storage) {
    case KvStorage::kBf16:
      return f(std::integral_constant<KvStorage, KvStorage::kBf16>{});
    case KvStorage::kInt8:
      return f(std::integral_constant<KvStorage, KvStorage::kInt8>{});
    case KvStorage::kFp8:
      return f(std::integral_constant<KvStorage, KvStorage::kFp8>{});
  }
}

void attention_decode(const AttentionArgs& args, CUstream_st* stream);
void attention_prefill(const AttentionArgs& args, CUstream_st* stream);

}  // namespace whit::cuda
