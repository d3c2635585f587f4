#include "quantize/sequential.h"

#include <algorithm>

#include "base/progress.h"
#include "quantize/compensate.h"
#include "quantize/paired_target.h"
#include "quantize/profile.h"
#include "quantize/rounding.h"
#include "tensor/dtype.h"

namespace whit {
namespace {

constexpr int kAwqSteps = 10;  // of the exponent: every second of AWQ's own search

Tensor scaled_columns(const Tensor& w, const float* s, ThreadPool& pool) {
  Tensor scaled = w.clone();
  if (s == nullptr) return scaled;
  const int64_t k = w.dim(1);
  pool.parallel_for(w.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < k; ++i) scaled.data<float>()[row * k + i] *= s[i];
  });
  return scaled;
}

class LayerRounder {
 public:
  LayerRounder(PairedStream& stream, const Graph& graph, NodeRange range,
               const WeightProvider& original, const SequentialOptions& options)
      : stream_(stream),
        graph_(graph),
        range_(range),
        source_(original),
        options_(options),
        weights_(LayerWeights::load(graph, range, original, stream.matmul().pool())) {
    result_.layer.folded.norms = std::move(weights_.norms);
    result_.layer.folded.biases = std::move(weights_.biases);
  }

  SequentialLayer run() {
    for (const Half& half : layer_halves(graph_, range_)) {
      check_interrupt();
      round(half.inner, Beside::kInputDifference, stream_.observe_inner(half, source_));
      check_interrupt();
      const WeightProvider mixed = provider_of(result_.layer, graph_);
      const std::vector<float> factors =
          round(half.outer, Beside::kWantedOutput, stream_.observe_outer(half, source_, mixed));
      stream_.advance(half, mixed, factors.empty() ? nullptr : factors.data());
    }
    return std::move(result_);
  }

 private:
  struct Rounded {
    std::map<NodeId, QuantizedTensor> linears;
    std::map<NodeId, QuantizedLayer::Salient> salient;
    double error = 0;  // over the energy, on held-out tokens
    std::string note;
    std::vector<std::string> fallbacks;
  };

  // Returns the factors that the input is divided by; empty for none.
  std::vector<float> round(const ScalingGroup& group, Beside beside, InputStats input) {
    GroupReport report{.name = group_name(graph_, group), .algorithm = "auto"};
    GroupProfile profile(graph_, group);
    LayerWeights targets;
    for (const NodeId id : group.linears) {
      profile.weight(id, weights_.linears.at(id), GroupProfile::When::kBefore,
                     stream_.matmul().pool());
      PairedTarget target =
          paired_target(std::move(weights_.linears.at(id)), input, beside, stream_.matmul());
      const std::string note = fmt::format("{}: {}", graph_.node(id).name, target.note);
      if (target.failed)
        report.fallbacks.push_back(note);
      else if (!target.note.empty())
        add_note(report, note);
      targets.linears[id] = std::move(target.weight);
    }
    const auto planned = options_.plan.find(group.linears.front());
    const QuantScheme& scheme = planned == options_.plan.end() ? options_.scheme : planned->second;
    for (const NodeId id : group.linears) result_.layer.schemes[id] = scheme;
    if (!scheme.weights) {
      for (const NodeId id : group.linears)
        result_.layer.linears[id] =
            round_to_scheme(f32_view(targets.linears.at(id)), scheme, stream_.matmul().pool());
      add_note(report, "kept in bf16");
      profile.activations(input, nullptr);
      profile.bits(result_.layer.linears);
      for (const NodeId id : group.linears)
        profile.weight(id, targets.linears.at(id), GroupProfile::When::kAfter,
                       stream_.matmul().pool());
      result_.profiles.push_back(profile.json());
      result_.reports.push_back(std::move(report));
      return {};
    }
    std::vector<InputStats> stats;
    stats.push_back(std::move(input));
    const LayerTask task{.graph = graph_,
                         .range = range_,
                         .stats = stats,
                         .scheme = scheme,
                         .fixed_alpha = std::nullopt,
                         .matmul = stream_.matmul()};
    GroupTrial trial(task, group, targets, nullptr);
    std::optional<Candidate> chosen = search_under_compensation(
        task, group, targets, trial, candidates(task, group, trial), report);
    Rounded rounded =
        round_group(task, group, targets, trial, chosen ? chosen->factors.data() : nullptr);
    if (chosen && rounded.error > report.rtn_error) {
      add_note(report, "the best factors lost to plain rounding on held-out tokens: not used");
      chosen.reset();
      rounded = round_group(task, group, targets, trial, nullptr);
    }
    add_note(report, rounded.note);
    report.fallbacks.insert(report.fallbacks.end(), rounded.fallbacks.begin(),
                            rounded.fallbacks.end());
    report.error = rounded.error;
    std::vector<float> factors;
    if (chosen) {
      report.exponent = chosen->exponent;
      factors = std::move(chosen->factors);
      fold_producer(group, factors);
    }
    const float* s = factors.empty() ? nullptr : factors.data();
    profile.activations(stats.front(), s);
    profile.bits(rounded.linears);
    for (const NodeId id : group.linears)
      profile.weight(id, scaled_columns(targets.linears.at(id), s, task.pool()),
                     GroupProfile::When::kAfter, task.pool());
    result_.profiles.push_back(profile.json());
    for (auto& [id, weight] : rounded.linears) {
      result_.layer.linears[id] = std::move(weight);
      if (const auto second = rounded.salient.find(id); second != rounded.salient.end())
        result_.layer.salient[id] = std::move(second->second);
      if (scheme.static_activations()) result_.layer.static_scales[id] = trial.static_scale(s);
    }
    result_.reports.push_back(std::move(report));
    return factors;
  }

  std::vector<Candidate> candidates(const LayerTask& task, const ScalingGroup& group,
                                    const GroupTrial& trial) const {
    std::vector<Candidate> all = awq_candidates(task, group, kAwqSteps);
    if (task.scheme.quantizes_activations())
      for (Candidate& candidate : smoothquant_candidates(task, group, trial))
        all.push_back(std::move(candidate));
    return all;
  }

  // With salient channels, where the request has them here.
  Rounded round_group(const LayerTask& task, const ScalingGroup& group, const LayerWeights& targets,
                      GroupTrial& trial, const float* s) const {
    const Hessian hessian(folded_gram(trial, s, task.pool()), trial.activation_noise(s),
                          task.matmul);
    const SalientRequest& request = options_.salient;
    const int64_t count = salient_count(task.scheme, request.share, trial.k());
    const std::vector<int32_t> channels = most_salient(trial.mean_abs(), count);
    if (count == 0 || !request.decided_by_loss())
      return round_linears(task, group, targets, trial, hessian, s, channels);
    Rounded without = round_linears(task, group, targets, trial, hessian, s, {});
    Rounded with = round_linears(task, group, targets, trial, hessian, s, channels);
    const double least = least_salient_gain(count, trial.k());
    const bool pays = with.error <= (1 - least) * without.error;
    Rounded& kept = pays ? with : without;
    kept.note = fmt::format(
        "{} salient channels {}: they change the held-out loss by {:+.1f} % (at "
        "least {:.1f} % less is wanted){}{}",
        count, pays ? "kept in bf16" : "not kept", 100 * (with.error / without.error - 1),
        100 * least, kept.note.empty() ? "" : "; ", kept.note);
    return std::move(kept);
  }

  Rounded round_linears(const LayerTask& task, const ScalingGroup& group,
                        const LayerWeights& targets, GroupTrial& trial, const Hessian& hessian,
                        const float* s, const std::vector<int32_t>& channels) const {
    Rounded rounded;
    GroupReport notes;
    if (!hessian.note().empty()) rounded.fallbacks.push_back(hessian.note());
    for (const NodeId id : group.linears) {
      Tensor w = scaled_columns(targets.linears.at(id), s, task.pool());
      QuantizedLayer::Salient salient = take_salient(w, channels);
      JudgedRounding best = round_best(
          task, w, hessian, task.graph.node(id).name,
          [&](Tensor values) {
            add_salient(salient, values);
            return trial.rounded_error(Split::kHeldOut, id, s, values);
          },
          notes);
      if (!channels.empty()) rounded.salient[id] = std::move(salient);
      rounded.error += best.error;
      rounded.linears[id] = std::move(best.weight);
    }
    rounded.error /= trial.energy(Split::kHeldOut);
    rounded.note = std::move(notes.note);
    return rounded;
  }

  void fold_producer(const ScalingGroup& group, const std::vector<float>& s) {
    const Node& producer = graph_.node(group.producer);
    QuantizedLayer& layer = result_.layer;
    if (producer.op == Op::kRmsNorm) {
      float* norm = layer.folded.norms.at(group.producer).data<float>();
      for (int64_t i = 0; i < producer.n; ++i) norm[i] /= s[i];
      return;
    }
    // The producing linear has been rounded already. int4 scales are f16: dividing rounds them
    // once more, by at most 2⁻¹¹.
    for (int64_t row = 0; row < producer.n; ++row) {
      const float by = s[channel_of_row(group, row)];
      divide_row(layer.linears.at(group.producer), row, by);
      if (const auto second = layer.salient.find(group.producer); second != layer.salient.end())
        divide_row(second->second.weight, row, by);
      if (layer.folded.biases.contains(group.producer))
        layer.folded.biases.at(group.producer).data<float>()[row] /= by;
    }
  }

  PairedStream& stream_;
  const Graph& graph_;
  NodeRange range_;
  const WeightProvider& source_;
  const SequentialOptions& options_;
  LayerWeights weights_;
  SequentialLayer result_;
};

}  // namespace

WeightProvider provider_of(const QuantizedLayer& layer, const Graph& graph) {
  const auto id_of = [&graph](const Node& node) {
    return static_cast<NodeId>(&node - graph.nodes().data());
  };
  return {.linear =
              [&layer, id_of](const Node& node) {
                LinearWeight weight;
                weight.view = layer.linears.at(id_of(node)).view();
                weight.activation = activation_of(layer.schemes.at(id_of(node)));
                const auto second = layer.salient.find(id_of(node));
                if (second != layer.salient.end()) {
                  weight.salient_channels = second->second.channels;
                  weight.salient = second->second.weight.view();
                }
                const auto fixed = layer.static_scales.find(id_of(node));
                if (fixed != layer.static_scales.end()) weight.static_scale = fixed->second;
                return weight;
              },
          .norm = [&layer,
                   id_of](const Node& node) { return layer.folded.norms.at(id_of(node)).clone(); },
          .bias = [&layer, id_of](
                      const Node& node) { return layer.folded.biases.at(id_of(node)).clone(); }};
}

SequentialLayer quantize_sequentially(PairedStream& stream, const Graph& graph, NodeRange range,
                                      const WeightProvider& original,
                                      const SequentialOptions& options) {
  return LayerRounder(stream, graph, range, original, options).run();
}

}  // namespace whit
