#include "quantize/algorithm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace whit {
namespace {

std::string needs_quantized_weights(const QuantScheme& scheme) {
  return scheme.weights ? "" : "the scheme quantizes nothing";
}

std::string needs_quantized_activations(const QuantScheme& scheme) {
  if (!scheme.weights) return "the scheme quantizes nothing";
  return scheme.quantizes_activations()
             ? ""
             : "SmoothQuant moves activation outliers into the weights, so it needs activations of "
               "8 bits: choose w8a8, w4a8, fp8 or w4afp8, or --mode awq";
}

std::string refuses_nothing(const QuantScheme&) { return ""; }

constexpr std::array<Algorithm, 7> kAlgorithms = {{
    {"awq", true, needs_quantized_weights, decide_awq},
    {"smoothquant", true, needs_quantized_activations, decide_smoothquant},
    {"rtn", false, refuses_nothing, decide_rtn},
    {"auto", true, needs_quantized_weights, nullptr},
    {"gptq", true, needs_quantized_weights, decide_gptq},
    {"awq-gptq", true, needs_quantized_weights, decide_awq_gptq},
    {"smoothquant-gptq", true, needs_quantized_activations, decide_smoothquant_gptq},
}};

// Candidates whose exact error is computed; the estimate chooses them. Over 223 groups of a 135M
// model, the best of all was among the first two but for one, where the second came within .5 %.
constexpr size_t kShortlist = 2;

}  // namespace

std::span<const Algorithm> algorithms() { return kAlgorithms; }

const Algorithm& find_algorithm(std::string_view name) {
  for (const Algorithm& algorithm : kAlgorithms)
    if (algorithm.name == name) return algorithm;
  std::string names;
  for (const Algorithm& algorithm : kAlgorithms)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", algorithm.name);
  throw Error(ErrorKind::kInvalidArgument, "unknown mode \"{}\"; choose one of {}", name, names);
}

std::string group_name(const Graph& graph, const ScalingGroup& group) {
  std::string name;
  for (const NodeId id : group.linears) name += (name.empty() ? "" : " ") + graph.node(id).name;
  return name;
}

void share_factors(const ScalingGroup& group, std::vector<float>& factors) {
  if (group.repeats <= 1) return;
  const auto dim = static_cast<size_t>(group.head_dim),
             repeats = static_cast<size_t>(group.repeats);
  for (size_t head = 0; head < factors.size(); head += dim * repeats)
    for (size_t i = 0; i < dim; ++i) {
      double log_sum = 0;
      for (size_t r = 0; r < repeats; ++r) log_sum += std::log(factors[head + r * dim + i]);
      const auto mean = static_cast<float>(std::exp(log_sum / static_cast<double>(repeats)));
      for (size_t r = 0; r < repeats; ++r) factors[head + r * dim + i] = mean;
    }
}

std::vector<const Candidate*> shortlist(GroupTrial& trial, std::span<const Candidate> candidates,
                                        size_t count) {
  std::vector<std::pair<double, const Candidate*>> ranked;
  for (const Candidate& candidate : candidates)
    ranked.emplace_back(candidates.size() > count ? trial.estimate(candidate.factors.data()) : 0,
                        &candidate);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<const Candidate*> kept;
  for (size_t i = 0; i < std::min(count, ranked.size()); ++i) kept.push_back(ranked[i].second);
  return kept;
}

GroupReport choose_and_fold(const LayerTask& task, const ScalingGroup& group, GroupTrial& trial,
                            std::span<const Candidate> candidates, std::string_view algorithm,
                            LayerWeights& weights, LayerDecision& decision) {
  GroupReport report{.name = group_name(task.graph, group), .algorithm = std::string(algorithm)};
  judge_statistics(task.stats_of(group.input), report);
  double best = std::numeric_limits<double>::infinity();
  const Candidate* chosen = nullptr;
  for (const Candidate* candidate : shortlist(trial, candidates, kShortlist)) {
    const double error = trial.error(Split::kSearch, candidate->factors.data());
    if (error < best) {
      best = error;
      chosen = candidate;
    }
  }
  report.rtn_error = report.error = trial.error(Split::kHeldOut, nullptr);
  if (chosen != nullptr) {
    const double held_out = trial.error(Split::kHeldOut, chosen->factors.data());
    if (held_out < report.rtn_error) {
      report.error = held_out;
      report.exponent = chosen->exponent;
      fold(group, chosen->factors.data(), task.graph, weights, task.pool());
      decision.applied[group.input] = chosen->factors;
    } else {
      report.note = "the best factors lost to plain rounding on held-out tokens: not used";
    }
  }
  return report;
}

QuantizedLayer round_layer(const LayerTask& task, LayerWeights weights, LayerDecision& decision) {
  QuantizedLayer layer;
  const WeightFormat format = weight_format(task.scheme);
  for (auto& [id, w] : weights.linears) {
    layer.schemes[id] = task.scheme;
    if (const auto done = decision.rounded.find(id); done != decision.rounded.end()) {
      layer.linears[id] = std::move(done->second);
      w = Tensor();
      continue;
    }
    const int64_t n = w.dim(0), k = w.dim(1);
    const int64_t group_size =
        format == WeightFormat::kInt4Group ? task.scheme.weights->group_size : 0;
    QuantizedTensor quantized = make_quantized(
        format, n, k, group_size, task.scheme.weights->symmetric, task.scheme.weights->two_level);
    const auto clip = decision.clips.find(id);
    const float* bounds = clip == decision.clips.end() ? nullptr : clip->second.data<float>();
    const float* from = w.data<float>();
    task.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
      quantize_rows_rtn(from + begin * k, begin, end, bounds, quantized);
    });
    layer.linears[id] = std::move(quantized);
    w = Tensor();
  }
  if (task.scheme.static_activations())
    for (const ScalingGroup& group : scaling_groups(task.graph, task.range)) {
      const InputStats& stats = task.stats_of(group.input);
      const auto applied = decision.applied.find(group.input);
      float largest = 1e-9f;
      for (int64_t i = 0; i < stats.k; ++i)
        largest =
            std::max(largest, stats.max_abs.data<float>()[i] /
                                  (applied == decision.applied.end() ? 1.0f : applied->second[i]));
      for (const NodeId id : group.linears)
        layer.static_scales[id] = largest / task.scheme.input_activations->largest_code();
    }
  layer.folded = std::move(weights);
  return layer;
}

}  // namespace whit
