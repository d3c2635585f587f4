#include "quantize/mixed_precision.h"

#include <algorithm>

#include "base/progress.h"
#include "quantize/decode_times.h"

namespace whit {
namespace {

constexpr size_t kFrontRows = 16;  // of the Pareto front that are recorded, evenly spread

Json to_json(const MixedPlan& plan) {
  Json json = {{"bits_per_weight", plan.bits_per_weight},
               {"kld", plan.kld},
               {"ppl_increase", predicted_ppl_increase(plan.kld)}};
  if (plan.tokens_per_s > 0) json["tokens_per_s"] = plan.tokens_per_s;
  return json;
}

}  // namespace

void check_mixed(const MixedRequest& request) {
  const MixedTarget& target = request.target;
  if (!target.any())
    throw Error(ErrorKind::kInvalidArgument,
                "mixed precision needs a target: --target-bpw, --max-ppl-increase or "
                "--target-decode-tps");
  if (target.bits_per_weight && !(*target.bits_per_weight >= 4 && *target.bits_per_weight <= 16))
    throw Error(ErrorKind::kInvalidArgument,
                "--target-bpw {} is outside 4 … 16 bits per weight, scales included",
                *target.bits_per_weight);
  if (target.ppl_increase && !(*target.ppl_increase > 0 && *target.ppl_increase < 100))
    throw Error(ErrorKind::kInvalidArgument,
                "--max-ppl-increase {} is no share of the original's PPL; give 0.02 for 2 %",
                *target.ppl_increase);
  if (target.tokens_per_s && !(*target.tokens_per_s > 0))
    throw Error(ErrorKind::kInvalidArgument, "--target-decode-tps {} is not above 0",
                *target.tokens_per_s);
  if (request.tokens < 2)
    throw Error(ErrorKind::kInvalidArgument, "--sensitivity-tokens {} are too few; give at least 2",
                request.tokens);
}

MixedDecision decide_mixed(const Model& model, const CalibrationData& data,
                           const MixedRequest& request, const QuantScheme& base, cpu::Isa isa,
                           ThreadPool& pool,
                           const std::function<void(const std::string&)>& notice) {
  check_mixed(request);
  const bool symmetric = base.weights && base.weights->symmetric;
  std::vector<GroupSensitivity> groups;
  Json study_record;
  {
    SensitivityStudy study(model, data, request.tokens, request.samples,
                           mixed_candidates(base.quantizes_activations(), symmetric), isa, pool);
    if (notice)
      notice(
          fmt::format("sensitivity study: every group of linears in 5 schemes on {} held-out "
                      "tokens, about {}",
                      study.tokens(), format_seconds(study.expected_seconds())));
    study_record = {{"tokens", study.tokens()}, {"expected_seconds", study.expected_seconds()}};
    groups = study.run();
  }
  double other = 0;
  if (request.target.tokens_per_s) other = measure_decode_times(model, groups, isa, pool);
  MixedDecision decision;
  const MixedPlan plan = choose_plan(groups, request.target, other);
  decision.schemes = schemes_of(groups, plan);

  Json target = Json::object();
  if (request.target.bits_per_weight) target["bits_per_weight"] = *request.target.bits_per_weight;
  if (request.target.ppl_increase) target["ppl_increase"] = *request.target.ppl_increase;
  if (request.target.tokens_per_s) target["tokens_per_s"] = *request.target.tokens_per_s;
  const std::vector<MixedPlan> front = pareto_front(groups, other);
  Json rows = Json::array();
  const size_t count = std::min(kFrontRows, front.size());
  for (size_t i = 0; i < count; ++i)
    rows.push_back(to_json(front[count < 2 ? 0 : i * (front.size() - 1) / (count - 1)]));
  Json recorded = Json::array();
  for (size_t g = 0; g < groups.size(); ++g) {
    recorded.push_back(to_json(groups[g]));
    recorded.back()["chosen"] = groups[g].candidates[plan.choice[g]].scheme.full_name();
  }
  decision.record = {{"target", target},
                     {"chosen", to_json(plan)},
                     {"front", rows},
                     {"study", study_record},
                     {"groups", recorded}};
  return decision;
}

}  // namespace whit
