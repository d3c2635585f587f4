#include "kernels/cpu/avx2/attention.h"

#include "kernels/cpu/avx2/float_vector.h"
#include "kernels/cpu/portable/attention.h"
#include "kernels/cpu/small_ops_flash.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx2 {

void kv_write(const KvWriteArgs& args, const Worker& worker) {
  if (args.cache.head_dim % Avx2::kLanes != 0)
    portable::kv_write(args, worker);
  else if (args.cache.dtype == DType::kF32)
    kv_write_rows<Avx2, float>(args, worker);
  else
    kv_write_rows<Avx2, uint16_t>(args, worker);
}

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  return args.cache.head_dim % Avx2::kLanes != 0 ? portable::attention_scratch_bytes(args)
                                                 : flash_scratch_bytes<Avx2>(args);
}

void attention(const AttentionArgs& args, const Worker& worker) {
  if (args.cache.head_dim % Avx2::kLanes != 0)
    portable::attention(args, worker);
  else if (args.cache.dtype == DType::kF32)
    flash_attention<Avx2, float>(args, worker);
  else
    flash_attention<Avx2, uint16_t>(args, worker);
}

}  // namespace whit::cpu::avx2
