#include "quantize/sensitivity.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "base/progress.h"
#include "quantize/algorithm.h"
#include "quantize/divergence.h"
#include "quantize/gptq.h"
#include "quantize/rounding.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSequence = 256;  // tokens, at most, of one held-out sequence
// Rounding a layer's candidates costs about as much as this many of its forward passes a token.
constexpr double kRoundingShare = 0.35;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sequences of the held-out windows, shortened to kSequence tokens: as many as `tokens` allows.
CalibrationData held_out_part(const CalibrationData& data, int64_t tokens) {
  CalibrationData part;
  part.source = data.source;
  part.length = std::min({data.length, kSequence, std::max<int64_t>(2, tokens)});
  std::vector<int64_t> sequences;
  for (const bool held_out : {true, false})  // where nothing is held out, the search split serves
    if (sequences.empty())
      for (const CalibrationWindow& window : calibration_windows(data))
        if (!held_out || window.split == Split::kHeldOut)
          for (int64_t i = 0; i < window.count; ++i) sequences.push_back(window.first + i);
  const int64_t wanted =
      std::clamp<int64_t>(tokens / part.length, 1, static_cast<int64_t>(sequences.size()));
  for (int64_t i = 0; i < wanted; ++i) {
    const int64_t sequence = sequences[i * static_cast<int64_t>(sequences.size()) / wanted];
    const auto begin = data.ids.begin() + sequence * data.length;
    part.ids.insert(part.ids.end(), begin, begin + part.length);
  }
  part.samples = wanted;
  return part;
}

// The original's weights but for one group, which is `rounded`.
WeightProvider with_group(const WeightProvider& original, const Graph& graph,
                          const std::map<NodeId, QuantizedTensor>& rounded,
                          const QuantScheme& scheme) {
  return {.linear =
              [&](const Node& node) {
                const auto found = rounded.find(static_cast<NodeId>(&node - graph.nodes().data()));
                if (found == rounded.end()) return original.linear(node);
                LinearWeight weight;
                weight.view = found->second.view();
                weight.activation = activation_of(scheme);
                return weight;
              },
          .norm = original.norm,
          .bias = original.bias};
}

}  // namespace

Json to_json(const GroupSensitivity& group) {
  Json candidates = Json::array();
  for (const SchemeCost& cost : group.candidates) {
    candidates.push_back(
        {{"scheme", cost.scheme.full_name()}, {"bits", cost.bits}, {"kld", cost.kld}});
    if (cost.seconds > 0) candidates.back()["decode_us"] = cost.seconds * 1e6;
  }
  return {{"name", group.name},
          {"layer", group.layer},
          {"weights", group.weights},
          {"note", group.note},
          {"candidates", candidates}};
}

std::vector<QuantScheme> mixed_candidates(bool int8_activations, bool symmetric) {
  std::vector<QuantScheme> candidates;
  for (const int64_t group : {128, 64, 32})
    candidates.push_back(
        QuantScheme::preset(int8_activations ? "w4a8" : "w4a16", group, symmetric));
  candidates.push_back(QuantScheme::preset(int8_activations ? "w8a8" : "w8a16"));
  candidates.push_back(QuantScheme::preset("bf16"));
  return candidates;
}

double stored_bits(const QuantScheme& scheme, int64_t n, int64_t k) {
  const auto weights = static_cast<double>(n) * static_cast<double>(k);
  if (!scheme.weights) return 16 * weights;
  if (scheme.weights->num_bits == 8) return 8 * weights + 32 * static_cast<double>(n);
  const int64_t groups = ceil_div(k, scheme.weights->group_size);
  const double zeros =
      scheme.weights->symmetric ? 0 : 8 * static_cast<double>(n * ceil_div(groups, 2));
  return 8 * static_cast<double>(n * ceil_div(k, 2)) + 16 * static_cast<double>(n * groups) + zeros;
}

CalibrationData evenly_spread(const CalibrationData& data, int64_t samples) {
  CalibrationData part = data;
  part.samples = std::min(samples, data.samples);
  part.ids.clear();
  for (int64_t i = 0; i < part.samples; ++i) {
    const auto begin = data.ids.begin() + i * data.samples / part.samples * data.length;
    part.ids.insert(part.ids.end(), begin, begin + data.length);
  }
  return part;
}

struct SensitivityStudy::Impl {
  const Model& model;
  const Graph& graph;
  const WeightProvider original;
  std::vector<QuantScheme> candidates;
  cpu::Isa isa;
  ThreadPool& pool;
  CalibrationData judged, observed;
  RopeTables rope;
  int64_t rows, width;
  Tensor hidden;  // the original's, before the layer being studied, [rows, D]
  Tensor final;   // … and behind the last layer
  std::vector<std::unique_ptr<Stage>> stages;
  HeadComparison head;
  double layer_seconds = 0, head_seconds = 0;  // of all rows through one

  Impl(const Model& source, const CalibrationData& data, int64_t tokens, int64_t samples,
       std::vector<QuantScheme> schemes, cpu::Isa isa_of_kernels, ThreadPool& threads)
      : model(source),
        graph(source.graph()),
        original(source.weights()),
        candidates(std::move(schemes)),
        isa(isa_of_kernels),
        pool(threads),
        judged(held_out_part(data, tokens)),
        observed(evenly_spread(data, samples)),
        rope(rope_tables(source.config(), std::max(judged.length, observed.length))),
        rows(judged.samples * judged.length),
        width(source.config().hidden_size),
        hidden(embed(graph, original, judged, isa, pool)),
        final(hidden.clone()),
        head(source, isa, pool) {
    for (int layer = 0; layer < graph.layers(); ++layer)
      stages.push_back(
          std::make_unique<Stage>(graph, graph.layer(layer), original, judged.length, isa, pool));
    const auto start = Clock::now();
    for (const auto& stage : stages) stage->advance(final.data<float>(), rows, rope);
    layer_seconds = seconds_since(start) / graph.layers();
    const auto before_head = Clock::now();
    const int64_t count = std::min(rows, HeadComparison::kRows);
    head.logits(final.data<float>(), count);
    head_seconds =
        seconds_since(before_head) * static_cast<double>(rows) / static_cast<double>(count);
  }

  // The group's linears in a candidate's format.
  std::map<NodeId, QuantizedTensor> round(const LayerTask& task, const ScalingGroup& group,
                                          const LayerWeights& weights, const Tensor& gram,
                                          std::optional<Hessian>& hessian) {
    std::map<NodeId, QuantizedTensor> rounded;
    for (const NodeId id : group.linears) {
      const Tensor& w = weights.linears.at(id);
      if (task.scheme.weights && !hessian) hessian.emplace(gram, 0.0, task.matmul);
      if (task.scheme.weights && hessian->factored())
        rounded[id] = round_compensated(w, *hessian, *task.scheme.weights,
                                        {.search_ranges = false, .sweeps = 0}, task.matmul)
                          .weight;
      else
        rounded[id] = round_to_scheme(f32_view(w), task.scheme, pool);
    }
    return rounded;
  }

  std::vector<GroupSensitivity> study_layer(int layer, LayerStream& stream) {
    const NodeRange range = graph.layer(layer);
    const std::vector<InputStats> stats =
        stream.observe(layer, original, LayerStream::Advance::kYes);
    const LayerWeights weights = LayerWeights::load(graph, range, original, pool);
    const std::vector<ScalingGroup> groups = scaling_groups(graph, range);
    const auto variants = static_cast<int64_t>(groups.size() * candidates.size());
    Tensor states(DType::kF32, {variants * rows, width});
    float* to = states.data<float>();
    std::vector<GroupSensitivity> results;
    for (const ScalingGroup& group : groups) {
      GroupSensitivity result{
          .name = group_name(graph, group), .layer = layer, .linears = group.linears};
      for (const NodeId id : group.linears) result.weights += graph.node(id).n * graph.node(id).k;
      std::optional<Hessian> hessian;
      for (const QuantScheme& scheme : candidates) {
        check_interrupt();
        const LayerTask task{.graph = graph,
                             .range = range,
                             .stats = stats,
                             .scheme = scheme,
                             .fixed_alpha = std::nullopt,
                             .matmul = stream.matmul()};
        const std::map<NodeId, QuantizedTensor> rounded =
            round(task, group, weights, task.stats_of(group.input).search.gram, hessian);
        SchemeCost cost{.scheme = scheme};
        for (const NodeId id : group.linears)
          cost.bits += stored_bits(scheme, graph.node(id).n, graph.node(id).k);
        result.candidates.push_back(cost);
        std::memcpy(to, hidden.data<float>(), rows * width * 4);
        Stage(graph, range, with_group(original, graph, rounded, scheme), judged.length, isa, pool)
            .advance(to, rows, rope);
        to += rows * width;
      }
      if (hessian) result.note = hessian->note();
      results.push_back(std::move(result));
    }
    for (int behind = layer + 1; behind < graph.layers(); ++behind)
      stages[behind]->advance(states.data<float>(), variants * rows, rope);
    const std::vector<double> klds = head.divergences(final, states);
    for (size_t g = 0; g < groups.size(); ++g)
      for (size_t c = 0; c < candidates.size(); ++c)
        results[g].candidates[c].kld = klds[g * candidates.size() + c];
    stages[layer]->advance(hidden.data<float>(), rows, rope);
    stages[layer].reset();
    return results;
  }
};

SensitivityStudy::SensitivityStudy(const Model& model, const CalibrationData& data, int64_t tokens,
                                   int64_t samples, std::vector<QuantScheme> candidates,
                                   cpu::Isa isa, ThreadPool& pool)
    : impl_(
          std::make_unique<Impl>(model, data, tokens, samples, std::move(candidates), isa, pool)) {}

SensitivityStudy::~SensitivityStudy() = default;

int64_t SensitivityStudy::tokens() const { return impl_->rows; }

double SensitivityStudy::expected_seconds() const {
  const Impl& impl = *impl_;
  const auto layers = static_cast<double>(impl.graph.layers());
  const auto variants = 4.0 * static_cast<double>(impl.candidates.size());
  const double per_token = impl.layer_seconds / static_cast<double>(impl.rows);
  const auto observed = static_cast<double>(impl.observed.samples * impl.observed.length);
  const double statistics = layers * per_token * observed * 2;
  const double passes =
      variants * (layers * (layers + 1) / 2 * impl.layer_seconds + layers * impl.head_seconds);
  return statistics + passes + kRoundingShare * statistics;
}

std::vector<GroupSensitivity> SensitivityStudy::run() {
  Impl& impl = *impl_;
  Progress progress("measuring the sensitivity of layer", impl.graph.layers());
  LayerStream stream(impl.model.config(), impl.graph, impl.original, impl.observed, impl.isa,
                     impl.pool);
  std::vector<GroupSensitivity> groups;
  for (int layer = 0; layer < impl.graph.layers(); ++layer) {
    for (GroupSensitivity& group : impl.study_layer(layer, stream))
      groups.push_back(std::move(group));
    progress.update(layer + 1);
  }
  return groups;
}

}  // namespace whit
