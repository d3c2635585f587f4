#include "quantize/mixed.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace whit {
namespace {

using Groups = std::vector<GroupSensitivity>;
using Cost = std::function<double(const SchemeCost&)>;

constexpr int kBlends = 8;  // of bits and time, where both are bounded

// From one candidate of a group to the next on its hull.
struct Upgrade {
  size_t group;
  int to;
  double cost, gain;  // what it costs, and the divergence that it removes
};

// The candidates of a group on the lower hull of (cost, divergence), cheapest first.
std::vector<int> hull(const GroupSensitivity& group, const Cost& cost) {
  std::vector<int> order(group.candidates.size());
  std::iota(order.begin(), order.end(), 0);
  const auto& all = group.candidates;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const double x = cost(all[a]), y = cost(all[b]);
    return x != y ? x < y : all[a].kld < all[b].kld;
  });
  std::vector<int> kept;
  for (const int next : order) {
    if (!kept.empty() && all[next].kld >= all[kept.back()].kld) continue;
    while (kept.size() >= 2) {
      const SchemeCost &a = all[kept[kept.size() - 2]], &b = all[kept.back()], &c = all[next];
      // b stays where it lies below the line from a to c.
      if ((b.kld - a.kld) * (cost(c) - cost(a)) < (c.kld - a.kld) * (cost(b) - cost(a))) break;
      kept.pop_back();
    }
    kept.push_back(next);
  }
  return kept;
}

// Upgrades of all groups, those first that remove most divergence per cost. Within a group they
// come in order, as the hull is convex.
std::vector<Upgrade> upgrades(const Groups& groups, const Cost& cost, std::vector<int>& cheapest) {
  std::vector<Upgrade> all;
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::vector<int> path = hull(groups[g], cost);
    cheapest.push_back(path.front());
    for (size_t i = 1; i < path.size(); ++i) {
      const SchemeCost &from = groups[g].candidates[path[i - 1]],
                       &to = groups[g].candidates[path[i]];
      all.push_back({g, path[i], cost(to) - cost(from), from.kld - to.kld});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Upgrade& a, const Upgrade& b) {
    return a.gain * b.cost > b.gain * a.cost;
  });
  return all;
}

MixedPlan summed(const Groups& groups, std::vector<int> choice, double other_seconds) {
  MixedPlan plan{.choice = std::move(choice)};
  double bits = 0, weights = 0, seconds = other_seconds;
  bool timed = true;
  for (size_t g = 0; g < groups.size(); ++g) {
    const SchemeCost& cost = groups[g].candidates[plan.choice[g]];
    bits += cost.bits;
    weights += static_cast<double>(groups[g].weights);
    plan.kld += cost.kld;
    seconds += cost.seconds;
    timed &= cost.seconds > 0;
  }
  plan.bits_per_weight = bits / std::max(1.0, weights);
  if (timed) plan.tokens_per_s = 1 / seconds;
  return plan;
}

double bits_of(const SchemeCost& cost) { return cost.bits; }

bool within(const MixedPlan& plan, const MixedTarget& target) {
  return (!target.bits_per_weight || plan.bits_per_weight <= *target.bits_per_weight + 1e-9) &&
         (!target.tokens_per_s || plan.tokens_per_s >= *target.tokens_per_s);
}

// The best plan along one direction of cost: upgrades that still fit are made, others passed over.
std::optional<MixedPlan> fill(const Groups& groups, const MixedTarget& target, const Cost& cost,
                              double other_seconds) {
  std::vector<int> choice;
  const std::vector<Upgrade> steps = upgrades(groups, cost, choice);
  MixedPlan plan = summed(groups, choice, other_seconds);
  if (!within(plan, target)) return std::nullopt;
  std::vector<bool> stuck(groups.size(), false);  // an upgrade was passed over
  for (const Upgrade& step : steps) {
    if (stuck[step.group]) continue;
    const int before = plan.choice[step.group];
    std::vector<int> next = plan.choice;
    next[step.group] = step.to;
    MixedPlan upgraded = summed(groups, std::move(next), other_seconds);
    if (within(upgraded, target)) {
      plan = std::move(upgraded);
    } else {
      stuck[step.group] = true;
      plan.choice[step.group] = before;
    }
  }
  return plan;
}

}  // namespace

double predicted_ppl_increase(double kld) { return std::expm1(kld); }

std::vector<MixedPlan> pareto_front(const Groups& groups, double other_seconds) {
  std::vector<int> choice;
  const std::vector<Upgrade> steps = upgrades(groups, bits_of, choice);
  std::vector<MixedPlan> front = {summed(groups, choice, other_seconds)};
  for (const Upgrade& step : steps) {
    choice[step.group] = step.to;
    front.push_back(summed(groups, choice, other_seconds));
  }
  return front;
}

MixedPlan choose_plan(const Groups& groups, const MixedTarget& target, double other_seconds) {
  const auto refuse = [](std::string_view what) {
    throw Error(ErrorKind::kInvalidArgument, "no mixed precision plan is within the target: {}",
                what);
  };
  std::optional<MixedPlan> best;
  if (target.ppl_increase && !target.bits_per_weight && !target.tokens_per_s) {
    const std::vector<MixedPlan> front = pareto_front(groups, other_seconds);
    for (const MixedPlan& plan : front)
      if (!best && predicted_ppl_increase(plan.kld) <= *target.ppl_increase) best = plan;
    if (!best)
      refuse(fmt::format("the least predicted increase of PPL is {:.3g} %, {:.3g} % were asked for",
                         100 * predicted_ppl_increase(front.back().kld),
                         100 * *target.ppl_increase));
    return *best;
  }
  WHIT_DCHECK(!target.tokens_per_s ||
              summed(groups, std::vector<int>(groups.size(), 0), 0).tokens_per_s > 0);
  double smallest = 0, fastest = 0;
  for (int blend = 0; blend <= kBlends; ++blend) {
    const double share = static_cast<double>(blend) / kBlends;
    if (blend > 0 && !target.tokens_per_s) break;
    double bits = 0, seconds = 0;
    for (const GroupSensitivity& group : groups) {
      bits += group.candidates.front().bits;
      seconds += group.candidates.front().seconds;
    }
    const Cost cost = [&](const SchemeCost& of) {
      return (1 - share) * of.bits / bits + (seconds > 0 ? share * of.seconds / seconds : 0);
    };
    std::vector<int> cheapest;
    upgrades(groups, cost, cheapest);
    const MixedPlan least = summed(groups, cheapest, other_seconds);
    smallest = smallest > 0 ? std::min(smallest, least.bits_per_weight) : least.bits_per_weight;
    fastest = std::max(fastest, least.tokens_per_s);
    const std::optional<MixedPlan> plan = fill(groups, target, cost, other_seconds);
    if (plan && (!best || plan->kld < best->kld)) best = plan;
  }
  if (!best)
    refuse(
        target.tokens_per_s
            ? fmt::format("at least {:.3f} bits per weight are needed, and at most {:.1f} tokens "
                          "per second are predicted on this machine",
                          smallest, fastest)
            : fmt::format("at least {:.3f} bits per weight are needed", smallest));
  if (target.ppl_increase && predicted_ppl_increase(best->kld) > *target.ppl_increase)
    refuse(fmt::format("within the other bounds PPL is predicted to rise by {:.3g} %",
                       100 * predicted_ppl_increase(best->kld)));
  return *best;
}

SchemePlan schemes_of(const Groups& groups, const MixedPlan& plan) {
  SchemePlan schemes;
  for (size_t g = 0; g < groups.size(); ++g)
    for (const NodeId id : groups[g].linears)
      schemes[id] = groups[g].candidates[plan.choice[g]].scheme;
  return schemes;
}

}  // namespace whit
