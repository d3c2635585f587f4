#include "quantize/decode_times.h"

#include <algorithm>
#include <chrono>
#include <tuple>

#include "engine/executor.h"
#include "quantize/rounding.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

// Copies of a group's weights that are read in turn, together more than caches hold …
constexpr int64_t kRingBytes = 96 << 20;
constexpr int64_t kLargestRing = 32;
constexpr int kRounds = 9;         // … this many times; the median counts
constexpr int64_t kContext = 128;  // tokens before the measured steps
constexpr int kSteps = 24;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <typename F>
double seconds_of(F&& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A weight in a scheme, rounded to nearest.
LinearWeight in_scheme(const LinearWeight& source, const QuantScheme& scheme, ThreadPool& pool) {
  auto rounded = std::make_shared<QuantizedTensor>(round_to_scheme(source.view, scheme, pool));
  LinearWeight weight;
  weight.view = rounded->view();
  weight.activation = activation_of(scheme);
  weight.owner = std::move(rounded);
  return weight;
}

// One product of one row by a group's linears, which stand one after another in the graph.
double time_group(const Graph& graph, const WeightProvider& original,
                  const std::vector<NodeId>& linears, const QuantScheme& scheme, cpu::Isa isa,
                  ThreadPool& pool) {
  std::map<NodeId, LinearWeight> weights;
  for (const NodeId id : linears)
    weights[id] = in_scheme(original.linear(graph.node(id)), scheme, pool);
  const WeightProvider provider{
      .linear =
          [&](const Node& node) {
            return weights.at(static_cast<NodeId>(&node - graph.nodes().data()));
          },
      .norm = original.norm,
      .bias = original.bias};
  const NodeRange range{linears.front(), linears.back() + 1};
  std::vector<Program> ring;
  int64_t bytes = 0;
  while (bytes < kRingBytes && static_cast<int64_t>(ring.size()) < kLargestRing) {
    ring.emplace_back(graph, range, provider, ProgramOptions{.max_tokens = 1, .isa = isa}, pool);
    bytes += std::max<int64_t>(1, ring.back().weight_bytes());
  }
  std::vector<float> x(graph.node(linears.front()).k, 0.5f);
  Program::Input input;
  input.hidden = x.data();
  input.batch.t = 1;
  std::vector<double> seconds, starting;
  for (int round = 0; round < kRounds; ++round) {
    const double per_ring = seconds_of([&] {
      for (Program& program : ring) program.run(input);
    });
    seconds.push_back(per_ring / static_cast<double>(ring.size()));
    // A whole model starts its threads once for all groups.
    starting.push_back(seconds_of([&] { pool.run([](const Worker&) {}); }));
  }
  return std::max(1e-9, median(std::move(seconds)) - median(std::move(starting)));
}

// One step of a model in `scheme` with an int8 head.
double time_step(const Model& model, const QuantScheme& scheme, cpu::Isa isa, ThreadPool& pool) {
  const WeightProvider original = model.weights();
  const WeightProvider provider{
      .linear =
          [&](const Node& node) {
            const LinearWeight source = original.linear(node);
            if (node.op == Op::kEmbedding) return source;
            return in_scheme(source, node.layer < 0 ? QuantScheme::preset("w8a16") : scheme, pool);
          },
      .norm = original.norm,
      .bias = original.bias};
  Executor executor(
      model.config(), model.graph(), provider,
      {.max_tokens = kContext, .max_context = kContext + kSteps, .max_logit_rows = 1, .isa = isa},
      pool);
  KvCache cache = executor.make_cache(1, kContext + kSteps, DType::kF16);
  std::vector<double> seconds;
  for (int64_t position = 0; position < kContext + kSteps;) {
    const int64_t count = position == 0 ? kContext : 1;
    const std::vector<int32_t> ids(count, 0);
    const int64_t starts[] = {position}, counts[] = {count};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    const int32_t last[] = {static_cast<int32_t>(count - 1)};
    const double taken = seconds_of([&] {
      executor.step(ids, batch.view(), cache);
      executor.logits(last);
    });
    if (position > 0) seconds.push_back(taken);
    position += count;
  }
  return median(std::move(seconds));
}

}  // namespace

double measure_decode_times(const Model& model, std::vector<GroupSensitivity>& groups, cpu::Isa isa,
                            ThreadPool& pool) {
  const Graph& graph = model.graph();
  const WeightProvider original = model.weights();
  // Groups of one shape cost the same.
  std::map<std::tuple<int64_t, int64_t, std::string>, double> known;
  double products = 0;
  for (GroupSensitivity& group : groups) {
    int64_t n = 0;
    for (const NodeId id : group.linears) n += graph.node(id).n;
    for (SchemeCost& cost : group.candidates) {
      double& seconds = known[{n, graph.node(group.linears[0]).k, cost.scheme.full_name()}];
      if (!(seconds > 0))
        seconds = time_group(graph, original, group.linears, cost.scheme, isa, pool);
      cost.seconds = seconds;
    }
    products += group.candidates.front().seconds;
  }
  const double step = time_step(model, groups.front().candidates.front().scheme, isa, pool);
  return std::max(0.0, step - products);
}

}  // namespace whit
