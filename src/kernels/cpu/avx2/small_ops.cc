// The AVX2 row of small operations: the shared templates of small_ops, compiled with this folder's
// flags.
#include "kernels/cpu/small_ops.h"

#include "kernels/cpu/avx2/attention.h"
#include "kernels/cpu/avx2/float_vector.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx2 {

const SmallOps kSmallOps = {.name = "avx2/small_ops",
                            .isa = Isa::kAvx2,
                            .rms_norm = rms_norm<Avx2>,
                            .quantize = quantize<Avx2>,
                            .silu_mul = silu_mul<Avx2>,
                            .add = add<Avx2>,
                            .rope = rope<Avx2>,
                            .kv_write = kv_write,
                            .kv_commit = kv_commit,
                            .attention_scratch_bytes = attention_scratch_bytes,
                            .attention = attention,
                            .attention_in_parts = attention_in_parts,
                            .attention_merge = attention_merge,
                            .embedding = embedding<Avx2>,
                            .argmax = argmax<Avx2>,
                            .log_sum_exp = log_sum_exp<Avx2>,
                            .kl_divergence = kl_divergence<Avx2>};

}  // namespace whit::cpu::avx2
