// Floating-point caches whose head size is no multiple of 16 go to the AVX2 kernels.
#include "kernels/cpu/avx512/attention.h"

#include "kernels/cpu/avx2/attention.h"
#include "kernels/cpu/avx512/bf16_write.h"
#include "kernels/cpu/avx512/float_vector.h"
#include "kernels/cpu/small_ops_codes.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx512 {
namespace {

bool runs_here(const KvCacheView& cache) {
  return has_blocks(cache.type) ? cache.head_dim <= kLargestCodedHead
                                : cache.head_dim % Avx512::kLanes == 0;
}

}  // namespace

void kv_write(const KvWriteArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return avx2::kv_write(args, worker);
  switch (args.cache.type) {
    case KvType::kF32:
      return kv_write_rows<Avx512>(args, worker);
    case KvType::kBF16:
      return kv_write_bf16(args, worker);
    case KvType::kF16:
    case KvType::kInt8:
    case KvType::kInt4:
      return kv_write_codes<Avx512>(args, worker);
    case KvType::kFp8:  // no cache of it is made in host memory
      return;
  }
}

void kv_commit(const KvWriteArgs& args, const Worker& worker) {
  kv_commit_tails<Avx512>(args, worker);
}

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  if (!runs_here(args.cache)) return avx2::attention_scratch_bytes(args);
  return has_codes(args.cache.type) ? codes_scratch_bytes<Avx512>(args)
                                    : flash_scratch_bytes<Avx512>(args);
}

void attention(const AttentionArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return avx2::attention(args, worker);
  switch (args.cache.type) {
    case KvType::kF32:
    case KvType::kBF16:
      return flash_attention<Avx512>(args, worker);
    case KvType::kF16:
      return codes_attention<Avx512, Words>(args, worker);
    case KvType::kInt8:
      return codes_attention<Avx512, CodeFormat<8, true>>(args, worker);
    case KvType::kInt4:
      return codes_attention<Avx512, CodeFormat<4, true>>(args, worker);
    case KvType::kFp8:  // no cache of it is made in host memory
      return;
  }
}

bool attention_in_parts(const AttentionArgs& args, int workers) {
  return runs_here(args.cache) ? in_parts(args, workers) : avx2::attention_in_parts(args, workers);
}

void attention_merge(const AttentionArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return avx2::attention_merge(args, worker);
  has_codes(args.cache.type) ? codes_merge<Avx512>(args, worker)
                             : flash_merge<Avx512>(args, worker);
}

}  // namespace whit::cpu::avx512
