#include "calibrate/coverage.h"

#include <algorithm>

namespace whit {

std::string reader_of(const Graph& graph, ValueId value) {
  for (const NodeId id : graph.value(value).consumers)
    if (graph.node(id).op == Op::kLinear) return graph.node(id).name;
  return graph.value(value).name;
}

Coverage coverage_of(const InputStats& stats, std::string name) {
  Coverage coverage{
      .name = std::move(name), .channels = stats.k, .gram_tokens = stats.search.gram_tokens};
  const float* mean = stats.mean_abs.data<float>();
  const float* gram = stats.search.gram.data<float>();
  const auto tokens = static_cast<double>(stats.search.tokens);
  for (int64_t i = 0; i < stats.k; ++i) {
    const double square = gram[i * stats.k + i];
    if (!(mean[i] > 0) || !(square > 0)) {
      ++coverage.dead;
      ++coverage.few;
      continue;
    }
    const double effective = tokens * mean[i] * mean[i] / square;
    if (effective < kFewEffectiveTokens) ++coverage.few;
    if (coverage.worst < 0 || effective < coverage.least) {
      coverage.least = effective;
      coverage.worst = i;
    }
  }
  return coverage;
}

std::vector<std::string> coverage_warnings(const std::vector<Coverage>& all) {
  int64_t channels = 0, few = 0, dead = 0, singular = 0;
  const Coverage *least = nullptr, *smallest = nullptr;
  for (const Coverage& each : all) {
    channels += each.channels;
    few += each.few;
    dead += each.dead;
    if (each.worst >= 0 && (least == nullptr || each.least < least->least)) least = &each;
    if (each.gram_tokens >= each.channels) continue;
    ++singular;
    if (smallest == nullptr ||
        each.gram_tokens - each.channels < smallest->gram_tokens - smallest->channels)
      smallest = &each;
  }
  std::vector<std::string> warnings;
  if (singular > 0)
    warnings.push_back(
        fmt::format("{} inputs of linears have more channels than calibration tokens (the input of "
                    "{}: {} channels, {} tokens): give more text, or raise --calib-samples",
                    singular, smallest->name, smallest->channels, smallest->gram_tokens));
  if (few > 0)
    warnings.push_back(fmt::format(
        "{} of {} input channels are reached by fewer than {:.0f} effective calibration "
        "tokens{}{}: "
        "give more, or more varied, text",
        few, channels, kFewEffectiveTokens,
        dead > 0 ? fmt::format(", {} of them by none", dead) : "",
        least == nullptr ? ""
                         : fmt::format(" (the least, {:.1f}, in channel {} of the input of {})",
                                       least->least, least->worst, least->name)));
  return warnings;
}

}  // namespace whit
