#include "engine/cuda_linears.h"

#include "engine/cuda_program.h"
#include "engine/stack.h"
#include "kernels/cuda/benchmark.h"

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

}  // namespace

CudaLinearTimings time_cuda_linears(const Model& model, std::span<const int64_t> ms) {
  cuda::LinearBenchmark benchmark;
  const std::vector<Stacked> linears = linears_of(model);
  const cuda::BenchmarkLimits limits = benchmark.limits(true);
  CudaLinearTimings timings{.device = limits.device,
                            .sms = limits.sms,
                            .read_bytes_per_s = limits.read_bytes_per_s,
                            .int8_operations_per_s = limits.int8_operations_per_s,
                            .bf16_operations_per_s = limits.bf16_operations_per_s};
  for (const auto& [names, weight] : linears)
    for (const int64_t m : ms) {
      const cuda::BenchmarkResult result = benchmark.run(weight, m);
      const bool bf16 = cuda::input_of(weight.format) == cuda::LinearInput::kBf16;
      const double peak = bf16 ? limits.bf16_operations_per_s : limits.int8_operations_per_s;
      timings.rows.push_back(
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
  return timings;
}

}  // namespace whit
