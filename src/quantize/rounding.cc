#include "quantize/rounding.h"

#include "tensor/dtype.h"

namespace whit {

WeightView f32_view(const Tensor& w) {
  return {.format = WeightFormat::kF32, .n = w.dim(0), .k = w.dim(1), .data = w.data<void>()};
}

QuantizedTensor round_to_scheme(const WeightView& source, const QuantScheme& scheme,
                                ThreadPool& pool) {
  const int64_t n = source.n, k = source.k;
  QuantizedTensor rounded;
  if (scheme.weights)
    rounded = make_quantized(weight_format(scheme), n, k, scheme.weights->group_size,
                             scheme.weights->symmetric, scheme.weights->two_level);
  else
    rounded = {.format = WeightFormat::kBF16, .n = n, .k = k, .data = Tensor(DType::kBF16, {n, k})};
  pool.parallel_for(n, [&](int64_t begin, int64_t end) {
    std::vector<float> row(k);
    for (int64_t r = begin; r < end; ++r) {
      dequantize_rows(source, r, r + 1, row.data());
      if (scheme.weights)
        quantize_rows_rtn(row.data(), r, r + 1, nullptr, rounded);
      else
        for (int64_t i = 0; i < k; ++i)
          rounded.data.data<uint16_t>()[r * k + i] = f32_to_bf16(row[i]);
    }
  });
  return rounded;
}

}  // namespace whit
