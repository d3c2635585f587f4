// Times the CUDA backend's kernels that are no linears (small_ops.h), each alone in a CUDA graph of
// many launches, on random data.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

struct SmallOpTiming {
  double us = 0;          // median of 25 graphs
  double bytes = 0;       // that must be read and written once
  double operations = 0;  // of attention's products: 4 · Dh for each visible pair and head
};

// Sequences of the same length, the last `tokens` of each being computed.
struct AttentionCase {
  KvStorage storage = KvStorage::kBf16;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t batch = 1, context = 0, tokens = 1;

  int64_t cache_bytes() const {
    return 2 * batch * context * kv_heads * head_dim * (storage == KvStorage::kBf16 ? 2 : 1);
  }
};

class SmallOpsBenchmark {
 public:
  explicit SmallOpsBenchmark(Device& device) : device_(device) {}

  // Over caches that together exceed the L2 several times.
  SmallOpTiming attention(const AttentionCase& c);
  // Of t rows of this width, to bf16 rows or to int8 ones; what they read was just written, as in a
  // model, and lies in the L2 where it fits.
  SmallOpTiming rms_norm(int64_t t, int64_t width, bool int8);
  SmallOpTiming silu_mul(int64_t t, int64_t width, bool int8);
  SmallOpTiming quantize(int64_t t, int64_t width);
  // One token a sequence, t of them, at position 0 of a cache of bf16.
  SmallOpTiming rope_kv_write(int64_t t, int64_t heads, int64_t kv_heads, int64_t head_dim);

 private:
  DeviceBuffer random(int64_t bytes);
  template <typename T>
  DeviceBuffer copy(const std::vector<T>& values);
  double median_us(int64_t launches, const std::function<void(int64_t)>& launch);

  Device& device_;
};

}  // namespace whit::cuda
