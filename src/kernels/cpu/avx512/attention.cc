// Head sizes that are no multiple of 16 go to the AVX2 kernels.
#include "kernels/cpu/avx512/attention.h"

#include "kernels/cpu/avx2/attention.h"
#include "kernels/cpu/avx512/float_vector.h"
#include "kernels/cpu/small_ops_flash.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx512 {

void kv_write(const KvWriteArgs& args, const Worker& worker) {
  if (args.cache.head_dim % Avx512::kLanes != 0)
    avx2::kv_write(args, worker);
  else if (args.cache.dtype == DType::kF32)
    kv_write_rows<Avx512, float>(args, worker);
  else
    kv_write_rows<Avx512, uint16_t>(args, worker);
}

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  return args.cache.head_dim % Avx512::kLanes != 0 ? avx2::attention_scratch_bytes(args)
                                                   : flash_scratch_bytes<Avx512>(args);
}

void attention(const AttentionArgs& args, const Worker& worker) {
  if (args.cache.head_dim % Avx512::kLanes != 0)
    avx2::attention(args, worker);
  else if (args.cache.dtype == DType::kF32)
    flash_attention<Avx512, float>(args, worker);
  else
    flash_attention<Avx512, uint16_t>(args, worker);
}

}  // namespace whit::cpu::avx512
