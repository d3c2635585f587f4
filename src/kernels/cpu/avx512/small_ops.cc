// The AVX-512 row of small operations: the shared templates of small_ops, compiled with this
// folder's flags.
#include "kernels/cpu/small_ops.h"

#include "kernels/cpu/avx512/attention.h"
#include "kernels/cpu/avx512/float_vector.h"
#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu::avx512 {

const SmallOps kSmallOps = {.name = "avx512/small_ops",
                            .isa = Isa::kAvx512,
                            .rms_norm = rms_norm<Avx512>,
                            .quantize = quantize<Avx512>,
                            .silu_mul = silu_mul<Avx512>,
                            .add = add<Avx512>,
                            .rope = rope<Avx512>,
                            .kv_write = kv_write,
                            .kv_commit = kv_commit,
                            .attention_scratch_bytes = attention_scratch_bytes,
                            .attention = attention,
                            .attention_in_parts = attention_in_parts,
                            .attention_merge = attention_merge,
                            .embedding = embedding<Avx512>,
                            .argmax = argmax<Avx512>,
                            .log_sum_exp = log_sum_exp<Avx512>,
                            .kl_divergence = kl_divergence<Avx512>};

}  // namespace whit::cpu::avx512
