#include "kernels/cpu/avx2/attention.h"

#include "kernels/cpu/avx2/float_vector.h"
#include "kernels/cpu/portable/attention.h"
#include "kernels/cpu/small_ops_codes.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx2 {
namespace {

bool runs_here(const KvCacheView& cache) {
  return has_blocks(cache.type) ? cache.head_dim <= kLargestCodedHead
                                : cache.head_dim % Avx2::kLanes == 0;
}

}  // namespace

void kv_write(const KvWriteArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return portable::kv_write(args, worker);
  switch (args.cache.type) {
    case KvType::kF32:
      return kv_write_rows<Avx2>(args, worker);
    case KvType::kBF16:
      return for_each_written_block(args, worker,
                                    [&](int64_t b, int64_t from, int64_t to, int64_t head) {
                                      write_bf16_tokens(args, b, from, to, head);
                                    });
    case KvType::kF16:
    case KvType::kInt8:
    case KvType::kInt4:
      return kv_write_codes<Avx2>(args, worker);
    case KvType::kFp8:  // no cache of it is made in host memory
      return;
  }
}

void kv_commit(const KvWriteArgs& args, const Worker& worker) {
  kv_commit_tails<Avx2>(args, worker);
}

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  if (!runs_here(args.cache)) return portable::attention_scratch_bytes(args);
  return has_codes(args.cache.type) ? codes_scratch_bytes<Avx2>(args)
                                    : flash_scratch_bytes<Avx2>(args);
}

void attention(const AttentionArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return portable::attention(args, worker);
  switch (args.cache.type) {
    case KvType::kF32:
    case KvType::kBF16:
      return flash_attention<Avx2>(args, worker);
    case KvType::kF16:
      return codes_attention<Avx2, Words>(args, worker);
    case KvType::kInt8:
      return codes_attention<Avx2, CodeFormat<8, true>>(args, worker);
    case KvType::kInt4:
      return codes_attention<Avx2, CodeFormat<4, true>>(args, worker);
    case KvType::kFp8:  // no cache of it is made in host memory
      return;
  }
}

bool attention_in_parts(const AttentionArgs& args, int workers) {
  return runs_here(args.cache) ? in_parts(args, workers)
                               : portable::attention_in_parts(args, workers);
}

void attention_merge(const AttentionArgs& args, const Worker& worker) {
  if (!runs_here(args.cache)) return portable::attention_merge(args, worker);
  has_codes(args.cache.type) ? codes_merge<Avx2>(args, worker) : flash_merge<Avx2>(args, worker);
}

}  // namespace whit::cpu::avx2
