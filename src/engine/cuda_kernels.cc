#include "engine/cuda_kernels.h"

#include <algorithm>

#include "engine/cuda_program.h"
#include "engine/stack.h"
#include "kernels/cuda/benchmark.h"
#include "kernels/cuda/small_ops_benchmark.h"

namespace whit {
namespace {

struct Stacked {
  std::string names;
  cuda::BenchmarkWeight weight;
};

std::vector<Stacked> linears_of(const Model& model) {
  const Graph& graph = model.graph();
  const WeightProvider weights = model.weights();
  std::vector<Stacked> all;
  auto add = [&](std::span<const NodeId> nodes) {
    const LinearWeight front = weights.linear(graph.node(nodes.front()));
    Stacked stacked{.weight = {.format = cuda_format_of(front),
                               .k = graph.node(nodes.front()).k,
                               .group_size = front.view.group_size,
                               .zero_points = front.view.zeros != nullptr}};
    cuda::BenchmarkWeight& weight = stacked.weight;
    for (const NodeId id : nodes) {
      const std::string& name = graph.node(id).name;
      stacked.names += (stacked.names.empty() ? "" : " + ") + name.substr(name.rfind('.') + 1);
      weight.n += graph.node(id).n;
    }
    for (const Stacked& known : all)
      if (known.weight.format == weight.format && known.weight.n == weight.n &&
          known.weight.k == weight.k && known.weight.group_size == weight.group_size &&
          known.weight.zero_points == weight.zero_points)
        return;
    all.push_back(std::move(stacked));
  };
  // A checkpoint's layers are all alike; an engine's may have schemes of their own.
  const int layers = model.engine() != nullptr ? graph.layers() : std::min(1, graph.layers());
  for (int layer = 0; layer < layers; ++layer)
    for (const ScalingGroup& group : scaling_groups(graph, graph.layer(layer))) add(group.linears);
  for (const Node& node : graph.nodes())
    if (node.op == Op::kLinear && node.layer < 0) {
      const auto id = static_cast<NodeId>(&node - graph.nodes().data());
      add({&id, 1});
    }
  return all;
}

constexpr int64_t kDecodeContext = 4096;
constexpr int64_t kMostCacheBytes = int64_t{4} << 30;
constexpr int64_t kLeastPrompt = 128;

void time_others(const Graph& graph, std::span<const Stacked> linears, std::span<const int64_t> ms,
                 CudaKernelTimings& timings) {
  const auto device = cuda::open_device();
  cuda::SmallOpsBenchmark benchmark(*device);
  const auto add = [&](CudaKernelTiming row, const cuda::SmallOpTiming& timing) {
    row.us = timing.us;
    row.bytes_per_s = timing.bytes / timing.us * 1e6;
    row.operations_per_s = timing.operations / timing.us * 1e6;
    row.percent_of_bandwidth = 100 * row.bytes_per_s / timings.read_bytes_per_s;
    row.percent_of_peak = 100 * row.operations_per_s / timings.bf16_operations_per_s;
    timings.others.push_back(std::move(row));
  };
  const bool int8 = std::any_of(linears.begin(), linears.end(), [](const Stacked& stacked) {
    return cuda::input_of(stacked.weight.format) == cuda::LinearInput::kInt8;
  });
  const std::string made = int8 ? "int8" : "bf16";
  const Node *norm = nullptr, *attention = nullptr, *activation = nullptr;
  for (const Node& node : graph.nodes()) {
    if (node.op == Op::kRmsNorm) norm = &node;
    if (node.op == Op::kAttention) attention = &node;
    if (node.op == Op::kSiluMul) activation = &node;
  }
  for (const int64_t m : ms) {
    if (norm != nullptr)
      add({.kernel = "rms_norm", .format = made, .m = m}, benchmark.rms_norm(m, norm->n, int8));
    if (activation != nullptr)
      add({.kernel = "silu_mul", .format = made, .m = m},
          benchmark.silu_mul(m, graph.value(activation->output).width, int8));
    if (attention == nullptr) continue;
    const int64_t kv_heads = graph.value(attention->inputs[1]).width / attention->head_dim;
    if (int8)
      add({.kernel = "quantize", .format = made, .m = m},
          benchmark.quantize(m, attention->heads * attention->head_dim));
    add({.kernel = "rope_kv_write", .format = "bf16", .m = m},
        benchmark.rope_kv_write(m, attention->heads, kv_heads, attention->head_dim));
  }
  if (attention == nullptr) return;
  for (const cuda::KvStorage storage :
       {cuda::KvStorage::kBf16, cuda::KvStorage::kInt8, cuda::KvStorage::kFp8})
    for (const int64_t m : ms)
      for (const bool decode : {true, false}) {
        const cuda::AttentionCase c{
            .storage = storage,
            .heads = attention->heads,
            .kv_heads = graph.value(attention->inputs[1]).width / attention->head_dim,
            .head_dim = attention->head_dim,
            .batch = decode ? m : 1,
            .context = decode ? kDecodeContext : m,
            .tokens = decode ? 1 : m};
        if (decode ? c.cache_bytes() > kMostCacheBytes : m < kLeastPrompt) continue;
        add({.kernel = decode ? "attention decode" : "attention prefill",
             .format = std::string(cuda::name(storage)),
             .m = c.batch,
             .context = c.context,
             .tokens = c.tokens},
            benchmark.attention(c));
      }
}

}  // namespace

CudaKernelTimings time_cuda_kernels(const Model& model, std::span<const int64_t> ms) {
  cuda::LinearBenchmark benchmark;
  const std::vector<Stacked> linears = linears_of(model);
  const cuda::BenchmarkLimits limits = benchmark.limits(true);
  CudaKernelTimings timings{.device = limits.device,
                            .sms = limits.sms,
                            .read_bytes_per_s = limits.read_bytes_per_s,
                            .int8_operations_per_s = limits.int8_operations_per_s,
                            .bf16_operations_per_s = limits.bf16_operations_per_s};
  for (const auto& [names, weight] : linears)
    for (const int64_t m : ms) {
      const cuda::BenchmarkResult result = benchmark.run(weight, m);
      const bool bf16 = cuda::input_of(weight.format) == cuda::LinearInput::kBf16;
      const double peak = bf16 ? limits.bf16_operations_per_s : limits.int8_operations_per_s;
      timings.linears.push_back(
          {.linears = names,
           .format = std::string(cuda::name(weight.format)),
           .group_size = weight.group_size,
           .zero_points = weight.zero_points,
           .n = weight.n,
           .k = weight.k,
           .m = m,
           .us = result.us,
           .weight_bytes_per_s = result.weight_bytes_per_s,
           .bare_read_us = result.bare_read_us,
           .operations_per_s = result.operations_per_s,
           .percent_of_bandwidth = 100 * result.weight_bytes_per_s / limits.read_bytes_per_s,
           .percent_of_bare_read = 100 * result.bare_read_us / result.us,
           .percent_of_peak = 100 * result.operations_per_s / peak});
    }
  time_others(model.graph(), linears, ms, timings);
  return timings;
}

}  // namespace whit
