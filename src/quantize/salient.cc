#include "quantize/salient.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/dtype.h"

namespace whit {

int64_t salient_count(const QuantScheme& scheme, double share, int64_t k) {
  if (!(share > 0) || !scheme.weights || scheme.weights->num_bits != 4) return 0;
  return std::clamp<int64_t>(std::llround(share * static_cast<double>(k)), 1, k);
}

double least_salient_gain(int64_t count, int64_t k) {
  return 1 - std::pow(4.0, -16.0 * static_cast<double>(count) / static_cast<double>(k));
}

std::vector<int32_t> most_salient(const std::vector<float>& mean_abs, int64_t count) {
  std::vector<int32_t> order(mean_abs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return mean_abs[a] > mean_abs[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

QuantizedLayer::Salient take_salient(Tensor& w, const std::vector<int32_t>& channels) {
  QuantizedLayer::Salient salient{.channels = channels};
  if (channels.empty()) return salient;
  const int64_t n = w.dim(0), k = w.dim(1), count = static_cast<int64_t>(channels.size());
  salient.weight = {
      .format = WeightFormat::kBF16, .n = n, .k = count, .data = Tensor(DType::kBF16, {n, count})};
  auto* kept = salient.weight.data.data<uint16_t>();
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < count; ++i) {
      float& value = w.data<float>()[row * k + channels[i]];
      kept[row * count + i] = f32_to_bf16(value);
      value -= bf16_to_f32(kept[row * count + i]);
    }
  return salient;
}

void add_salient(const QuantizedLayer::Salient& salient, Tensor& values) {
  const int64_t n = values.dim(0), k = values.dim(1);
  const auto count = static_cast<int64_t>(salient.channels.size());
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < count; ++i)
      values.data<float>()[row * k + salient.channels[i]] +=
          bf16_to_f32(salient.weight.data.data<uint16_t>()[row * count + i]);
}

}  // namespace whit
