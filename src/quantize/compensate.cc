#include "quantize/compensate.h"

#include <algorithm>

namespace whit {
namespace {

// Candidates that are tried under compensation; plain rounding's estimated error chooses them.
constexpr size_t kTried = 5;

// Factors by which folding divided the rows of a linear: of the value that it produces, if any.
struct RowFactors {
  const ScalingGroup* group = nullptr;
  const std::vector<float>* factors = nullptr;
};

RowFactors row_factors(std::span<const ScalingGroup> groups, const LayerDecision& decision,
                       NodeId linear) {
  for (const ScalingGroup& group : groups)
    if (group.producer == linear && decision.applied.contains(group.input))
      return {&group, &decision.applied.at(group.input)};
  return {};
}

// Rounds one group's linears; judges in the space of the original weights.
class GroupCompensator {
 public:
  GroupCompensator(const LayerTask& task, std::span<const ScalingGroup> groups,
                   const ScalingGroup& group, const LayerWeights& original,
                   const LayerWeights& weights, LayerDecision& decision)
      : task_(task),
        groups_(groups),
        weights_(weights),
        decision_(decision),
        factors_(decision.applied.contains(group.input) ? decision.applied.at(group.input).data()
                                                        : nullptr),
        trial_(task, group, original, nullptr),
        hessian_(folded_gram(trial_, factors_, task.pool()), trial_.activation_noise(factors_),
                 task.matmul) {}

  void run(const ScalingGroup& group, GroupReport& report) {
    double error = 0;
    for (const NodeId id : group.linears) error += round(id, report);
    report.error = error / trial_.energy(Split::kHeldOut);
    if (!hessian_.note().empty()) report.fallbacks.push_back(hessian_.note());
  }

 private:
  double round(NodeId id, GroupReport& report) {
    JudgedRounding best = round_best(
        task_, weights_.linears.at(id), hessian_, task_.graph.node(id).name,
        [&](Tensor values) { return error_of(id, std::move(values)); }, report);
    decision_.rounded[id] = std::move(best.weight);
    return best.error;
  }

  // Held-out, squared, of the original linear's output.
  double error_of(NodeId id, Tensor values) {
    const RowFactors rows = row_factors(groups_, decision_, id);
    const int64_t n = values.dim(0), k = values.dim(1);
    if (rows.factors != nullptr)
      for (int64_t row = 0; row < n; ++row) {
        const float factor = (*rows.factors)[channel_of_row(*rows.group, row)];
        for (int64_t i = 0; i < k; ++i) values.data<float>()[row * k + i] *= factor;
      }
    return trial_.rounded_error(Split::kHeldOut, id, factors_, values);
  }

  const LayerTask& task_;
  std::span<const ScalingGroup> groups_;
  const LayerWeights& weights_;
  LayerDecision& decision_;
  const float* factors_;
  GroupTrial trial_;
  Hessian hessian_;
};

CompensatedWeight round_to_nearest(const LayerTask& task, const Tensor& w) {
  const int64_t n = w.dim(0), k = w.dim(1);
  const QuantArgs& args = *task.scheme.weights;
  CompensatedWeight result{
      make_quantized(weight_format(task.scheme), n, k, args.num_bits == 4 ? args.group_size : 0,
                     args.symmetric, args.two_level),
      Tensor(DType::kF32, {n, k})};
  task.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
    quantize_rows_rtn(w.data<float>() + begin * k, begin, end, nullptr, result.weight);
    dequantize_rows(result.weight.view(), begin, end, result.values.data<float>() + begin * k);
  });
  return result;
}

}  // namespace

void add_note(GroupReport& report, std::string_view note) {
  if (note.empty()) return;
  if (!report.note.empty()) report.note += "; ";
  report.note += note;
}

Tensor folded_gram(const GroupTrial& trial, const float* s, ThreadPool& pool) {
  Tensor gram = trial.gram().clone();
  if (s == nullptr) return gram;
  const int64_t k = trial.k();
  pool.parallel_for(k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < k; ++j) gram.data<float>()[i * k + j] /= s[i] * s[j];
  });
  return gram;
}

JudgedRounding round_best(const LayerTask& task, const Tensor& w, const Hessian& hessian,
                          std::string_view name, const std::function<double(Tensor values)>& error,
                          GroupReport& report) {
  CompensatedWeight nearest = round_to_nearest(task, w);
  JudgedRounding best{std::move(nearest.weight), error(std::move(nearest.values))};
  if (!hessian.factored()) return best;
  std::string_view kept = "plain rounding";
  for (const bool refine : {false, true}) {
    const Compensation options =
        refine ? Compensation{} : Compensation{.search_ranges = false, .sweeps = 0};
    CompensatedWeight candidate =
        round_compensated(w, hessian, *task.scheme.weights, options, task.matmul);
    const double judged = error(std::move(candidate.values));
    if (!(judged < best.error)) continue;
    best = {std::move(candidate.weight), judged};
    kept = refine ? "" : "compensation without refinement";
  }
  if (!kept.empty())
    add_note(report, fmt::format("{}: {} was better on held-out tokens", name, kept));
  return best;
}

std::optional<Candidate> search_under_compensation(const LayerTask& task, const ScalingGroup& group,
                                                   const LayerWeights& weights, GroupTrial& trial,
                                                   std::vector<Candidate> candidates,
                                                   GroupReport& report) {
  judge_statistics(task.stats_of(group.input), report);
  report.rtn_error = report.error = trial.error(Split::kHeldOut, nullptr);
  if (group.producer < 0) add_note(report, "nothing before it can absorb the factors");
  if (candidates.empty()) return std::nullopt;
  const Hessian hessian(trial.gram(), 0, task.matmul);
  if (!hessian.factored()) {
    report.fallbacks.push_back("no factors were searched: " + hessian.note());
    return std::nullopt;
  }
  const QuantArgs& args = *task.scheme.weights;
  const auto searched = [&](const float* s) {
    const double noise = trial.activation_noise(s);
    double error = 0;
    for (const NodeId id : group.linears)
      error += try_compensated(weights.linears.at(id), s, hessian, noise, args, task.matmul).error;
    return error;
  };
  double best = searched(nullptr);
  const Candidate* chosen = nullptr;
  for (const Candidate* candidate : shortlist(trial, candidates, kTried)) {
    const double error = searched(candidate->factors.data());
    if (!(error < best)) continue;
    best = error;
    chosen = candidate;
  }
  if (chosen == nullptr) {
    add_note(report, "no factors helped compensated rounding");
    return std::nullopt;
  }
  const auto held_out = [&](const float* s) {
    double error = 0;
    for (const NodeId id : group.linears) {
      Tensor values =
          try_compensated(weights.linears.at(id), s, hessian, 0, args, task.matmul).values;
      error += trial.rounded_error(Split::kHeldOut, id, s, values);
    }
    return error / trial.energy(Split::kHeldOut);
  };
  if (!(held_out(chosen->factors.data()) < std::min(held_out(nullptr), report.rtn_error))) {
    add_note(report, "the best factors lost to none on held-out tokens: not used");
    return std::nullopt;
  }
  return *chosen;
}

void compensate_layer(const LayerTask& task, const LayerWeights& original,
                      const LayerWeights& weights, LayerDecision& decision) {
  const std::vector<ScalingGroup> groups = scaling_groups(task.graph, task.range);
  for (size_t i = 0; i < groups.size(); ++i)
    GroupCompensator(task, groups, groups[i], original, weights, decision)
        .run(groups[i], decision.reports[i]);
}

LayerDecision decide_gptq(const LayerTask& task, LayerWeights& weights) {
  LayerDecision decision = decide_rtn(task, weights);
  compensate_layer(task, weights, weights, decision);
  for (GroupReport& report : decision.reports) report.algorithm = "gptq";
  return decision;
}

LayerDecision decide_awq_gptq(const LayerTask& task, LayerWeights& weights) {
  const LayerWeights original = weights.clone(task.pool());
  LayerDecision decision;
  for (const ScalingGroup& group : scaling_groups(task.graph, task.range)) {
    GroupReport report{.name = group_name(task.graph, group), .algorithm = "awq-gptq"};
    GroupTrial trial(task, group, weights, nullptr);
    const auto chosen =
        search_under_compensation(task, group, weights, trial, awq_candidates(task, group), report);
    if (chosen) {
      report.exponent = chosen->exponent;
      fold(group, chosen->factors.data(), task.graph, weights, task.pool());
      decision.applied[group.input] = chosen->factors;
    }
    decision.reports.push_back(std::move(report));
  }
  compensate_layer(task, original, weights, decision);
  return decision;
}

LayerDecision decide_smoothquant_gptq(const LayerTask& task, LayerWeights& weights) {
  const LayerWeights original = weights.clone(task.pool());
  LayerDecision decision = decide_smoothquant(task, weights);
  compensate_layer(task, original, weights, decision);
  for (GroupReport& report : decision.reports) report.algorithm = "smoothquant-gptq";
  return decision;
}

}  // namespace whit
