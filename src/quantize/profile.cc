#include "quantize/profile.h"

#include <algorithm>
#include <cmath>

namespace whit {
namespace {

// Four digits: enough to draw, a quarter of the text.
double short_number(float value) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, 3 - std::floor(std::log10(std::fabs(value))));
  return std::round(value * scale) / scale;
}

std::string own_name(const std::string& path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

std::pair<float, float> range_of(const Tensor& weight, ThreadPool& pool) {
  const int64_t rows = weight.dim(0), k = weight.dim(1);
  std::vector<std::pair<float, float>> by_row(rows);
  pool.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto [least, most] =
          std::minmax_element(weight.data<float>() + row * k, weight.data<float>() + (row + 1) * k);
      by_row[row] = {*least, *most};
    }
  });
  std::pair<float, float> range = by_row.front();
  for (const auto& [least, most] : by_row)
    range = {std::min(range.first, least), std::max(range.second, most)};
  return range;
}

GroupProfile::GroupProfile(const Graph& graph, const ScalingGroup& group)
    : graph_(graph), group_(group) {
  std::string kind;
  for (const NodeId id : group.linears)
    kind += fmt::format("{}{}", kind.empty() ? "" : " ", own_name(graph.node(id).name));
  json_ = {{"name", group_name(graph, group)},
           {"layer", graph.node(group.linears.front()).layer},
           {"kind", kind},
           {"weights", Json::array()}};
  for (const NodeId id : group.linears) json_["weights"].push_back({{"name", graph.node(id).name}});
}

void GroupProfile::activations(const InputStats& stats, const float* factors) {
  const int64_t bins = std::min(kBins, stats.k);
  std::vector<float> before(bins, 0.0f), after(bins, 0.0f);
  for (int64_t i = 0; i < stats.k; ++i) {
    const int64_t bin = i * bins / stats.k;
    const float most = stats.max_abs.data<float>()[i];
    before[bin] = std::max(before[bin], most);
    after[bin] = std::max(after[bin], factors == nullptr ? most : most / factors[i]);
  }
  Json& json = json_["activations"];
  json = {{"channels", stats.k}, {"before", Json::array()}, {"after", Json::array()}};
  for (const float value : before) json["before"].push_back(short_number(value));
  for (const float value : after) json["after"].push_back(short_number(value));
}

void GroupProfile::weight(NodeId linear, const Tensor& values, When when, ThreadPool& pool) {
  if (values.empty()) return;  // released: it was rounded already
  const auto [least, most] = range_of(values, pool);
  for (size_t i = 0; i < group_.linears.size(); ++i)
    if (group_.linears[i] == linear)
      json_["weights"][i][when == When::kBefore ? "before" : "after"] = {short_number(least),
                                                                         short_number(most)};
}

void GroupProfile::bits(const std::map<NodeId, QuantizedTensor>& rounded) {
  int64_t bytes = 0, count = 0;
  for (const NodeId id : group_.linears) {
    const auto found = rounded.find(id);
    if (found == rounded.end()) return;
    bytes += found->second.view().bytes();
    count += found->second.n * found->second.k;
  }
  json_["bits"] = short_number(8 * static_cast<float>(bytes) / static_cast<float>(count));
}

std::vector<GroupProfile> profile_layer(const LayerTask& task,
                                        const std::vector<ScalingGroup>& groups,
                                        const LayerWeights& original, const LayerWeights& folded,
                                        const LayerDecision& decision) {
  std::vector<GroupProfile> profiles;
  for (const ScalingGroup& group : groups) {
    GroupProfile& profile = profiles.emplace_back(task.graph, group);
    const auto applied = decision.applied.find(group.input);
    for (const InputStats& stats : task.stats)
      if (stats.value == group.input)
        profile.activations(stats,
                            applied == decision.applied.end() ? nullptr : applied->second.data());
    for (const NodeId id : group.linears) {
      profile.weight(id, original.linears.at(id), GroupProfile::When::kBefore, task.pool());
      profile.weight(id, folded.linears.at(id), GroupProfile::When::kAfter, task.pool());
    }
  }
  return profiles;
}

}  // namespace whit
