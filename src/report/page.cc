#include "report/page.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

namespace whit {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

using GroupValue = std::function<double(const Json& group)>;

// The kinds of groups ("q_proj k_proj v_proj", …) in the order of their first occurrence.
std::vector<std::string> kinds_of(const Json& groups) {
  std::vector<std::string> kinds;
  for (const Json& group : groups) {
    std::string kind = text_of(group, "kind", "linears");
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      kinds.push_back(std::move(kind));
  }
  return kinds;
}

// A value of each group over the layers, a series for each kind.
std::vector<Series> by_layer(const Json& groups, const GroupValue& value) {
  std::vector<Series> all;
  for (const std::string& kind : kinds_of(groups)) {
    Series series{.name = kind, .color = static_cast<int>(all.size() % 6)};
    for (const Json& group : groups) {
      if (text_of(group, "kind", "linears") != kind) continue;
      series.x.push_back(number_of(group, "layer", kNone));
      series.y.push_back(value(group));
      series.labels.push_back(text_of(group, "name"));
    }
    all.push_back(std::move(series));
  }
  return all;
}

GroupValue member(const char* key) {
  return [key](const Json& group) { return number_of(group, key, kNone); };
}

std::vector<double> numbers(const Json& list) {
  std::vector<double> values;
  if (list.is_array())
    for (const Json& value : list)
      values.push_back(value.is_number() ? value.get<double>() : kNone);
  return values;
}

// Largest over median of a group's channels: how far outliers stand out.
double outlier_ratio(const Json& group, const char* key) {
  std::vector<double> values = numbers(member_of(member_of(group, "activations"), key));
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  if (values.empty()) return kNone;
  std::sort(values.begin(), values.end());
  const double median = values[values.size() / 2];
  return median > 0 ? values.back() / median : kNone;
}

Series channels(const Json& group, const char* key, const char* name, int color) {
  Series series{.name = name, .mark = Series::Mark::kLine, .color = color};
  series.y = numbers(member_of(member_of(group, "activations"), key));
  const double of = number_of(member_of(group, "activations"), "channels", 0);
  for (size_t i = 0; i < series.y.size(); ++i)
    series.x.push_back(of * (static_cast<double>(i) + 0.5) / static_cast<double>(series.y.size()));
  return series;
}

}  // namespace

double number_of(const Json& object, const char* key, double fallback) {
  const Json& value = member_of(object, key);
  return value.is_number() ? value.get<double>() : fallback;
}

std::string text_of(const Json& object, const char* key, const std::string& fallback) {
  const Json& value = member_of(object, key);
  return value.is_string() ? value.get<std::string>() : fallback;
}

const Json& member_of(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

std::vector<Chart> outlier_charts(const Json& groups) {
  std::vector<Chart> charts;
  for (const std::string& kind : kinds_of(groups)) {
    Series before{.name = "before", .color = 3}, after{.name = "after folding", .color = 0};
    const Json* worst = nullptr;
    double most = 0;
    for (const Json& group : groups) {
      if (text_of(group, "kind", "linears") != kind) continue;
      const double ratio = outlier_ratio(group, "before");
      for (Series* series : {&before, &after}) {
        series->x.push_back(number_of(group, "layer", kNone));
        series->labels.push_back(text_of(group, "name"));
      }
      before.y.push_back(ratio);
      after.y.push_back(outlier_ratio(group, "after"));
      if (ratio > most) {
        most = ratio;
        worst = &group;
      }
    }
    charts.push_back({.id = "outliers-" + kind,
                      .title = "Outliers, input of " + kind,
                      .x_label = "layer",
                      .y_label = "largest / median channel",
                      .log_y = true,
                      .series = {std::move(before), std::move(after)}});
    if (worst != nullptr)
      charts.push_back({.id = "channels-" + kind,
                        .title = "Channels, input of " + text_of(*worst, "name"),
                        .x_label = "channel",
                        .y_label = "largest |x|",
                        .log_y = true,
                        .series = {channels(*worst, "before", "before", 3),
                                   channels(*worst, "after", "after folding", 0)}});
  }
  return charts;
}

std::vector<Chart> weight_charts(const Json& groups) {
  struct Ranges {
    Series before{.name = "before", .color = 3}, after{.name = "after folding", .color = 0};
  };
  std::vector<std::pair<std::string, Ranges>> by_kind;
  for (const Json& group : groups)
    for (const Json& weight : member_of(group, "weights")) {
      const std::string name = text_of(weight, "name");
      const std::string kind = name.substr(name.rfind('.') + 1);
      auto found = std::find_if(by_kind.begin(), by_kind.end(),
                                [&](const auto& each) { return each.first == kind; });
      if (found == by_kind.end()) found = by_kind.insert(by_kind.end(), {kind, {}});
      for (const auto& [key, series] :
           {std::pair("before", &found->second.before), std::pair("after", &found->second.after)})
        for (const double bound : numbers(member_of(weight, key))) {
          series->x.push_back(number_of(group, "layer", kNone));
          series->y.push_back(bound);
          series->labels.push_back(name);
        }
    }
  std::vector<Chart> charts;
  for (auto& [kind, ranges] : by_kind)
    charts.push_back({.id = "weights-" + kind,
                      .title = "Range of weights, " + kind,
                      .x_label = "layer",
                      .y_label = "least and largest weight",
                      .series = {std::move(ranges.before), std::move(ranges.after)}});
  return charts;
}

std::vector<Chart> choice_charts(const Json& groups) {
  return {{.id = "exponents",
           .title = "Chosen exponent (AWQ) or strength α (SmoothQuant)",
           .x_label = "layer",
           .y_label = "exponent",
           .series = by_layer(groups, member("exponent"))},
          {.id = "clipping",
           .title = "Weight groups whose range was shrunk",
           .x_label = "layer",
           .y_label = "share",
           .series = by_layer(groups, member("clipped"))},
          {.id = "bits",
           .title = "Bits per weight, scales included",
           .x_label = "layer",
           .y_label = "bits",
           .series = by_layer(groups, member("bits"))}};
}

std::vector<Chart> error_charts(const Json& groups) {
  std::vector<Chart> charts;
  for (const std::string& kind : kinds_of(groups)) {
    Json of_kind = Json::array();
    for (const Json& group : groups)
      if (text_of(group, "kind", "linears") == kind) of_kind.push_back(group);
    std::vector<Series> rounded = by_layer(of_kind, member("rtn_error")),
                        chosen = by_layer(of_kind, member("error"));
    rounded[0].name = "rounded to nearest";
    rounded[0].color = 3;
    chosen[0].name = "as chosen";
    charts.push_back({.id = "errors-" + kind,
                      .title = "Output error, " + kind,
                      .x_label = "layer",
                      .y_label = "share of the output's energy",
                      .log_y = true,
                      .series = {std::move(rounded[0]), std::move(chosen[0])}});
  }
  charts.push_back({.id = "divergence",
                    .title = "KL divergence that each group contributes",
                    .x_label = "layer",
                    .y_label = "nats",
                    .log_y = true,
                    .series = by_layer(groups, member("kld"))});
  return charts;
}

std::vector<Chart> sensitivity_charts(const Json& engine) {
  const Json& groups = member_of(engine, "groups");
  const Json& study = member_of(engine, "sensitivity");
  if (!study.is_object()) return {};
  std::vector<Chart> charts;
  for (const std::string& kind : kinds_of(groups)) {
    std::vector<Series> schemes;
    for (const Json& group : groups) {
      if (text_of(group, "kind", "linears") != kind) continue;
      for (const Json& cost : member_of(group, "schemes")) {
        const std::string scheme = text_of(cost, "scheme");
        auto found = std::find_if(schemes.begin(), schemes.end(),
                                  [&](const Series& each) { return each.name == scheme; });
        if (found == schemes.end())
          found = schemes.insert(
              schemes.end(), Series{.name = scheme, .color = static_cast<int>(schemes.size() % 6)});
        found->x.push_back(number_of(group, "layer", kNone));
        found->y.push_back(number_of(cost, "kld", kNone));
        found->labels.push_back(text_of(group, "name") + ", " + scheme);
      }
    }
    charts.push_back({.id = "sensitivity-" + kind,
                      .title = "Divergence alone in each scheme, " + kind,
                      .x_label = "layer",
                      .y_label = "KL divergence (nats)",
                      .log_y = true,
                      .series = std::move(schemes)});
  }
  Series front{.name = "predicted front", .mark = Series::Mark::kLine, .color = 2},
      chosen{.name = "chosen, predicted", .color = 1}, got{.name = "measured", .color = 0};
  for (const Json& plan : member_of(study, "front")) {
    front.x.push_back(number_of(plan, "bits_per_weight", kNone));
    front.y.push_back(number_of(plan, "kld", kNone));
  }
  const Json& plan = member_of(study, "chosen");
  chosen.x = got.x = {number_of(plan, "bits_per_weight", kNone)};
  chosen.y = {number_of(plan, "kld", kNone)};
  got.y = {number_of(member_of(engine, "quality"), "kld", kNone)};
  charts.push_back({.id = "front",
                    .title = "Predicted divergence against size",
                    .x_label = "bits per weight of the decoder's linears",
                    .y_label = "KL divergence (nats)",
                    .log_y = true,
                    .series = {std::move(front), std::move(chosen), std::move(got)}});
  return charts;
}

std::vector<Chart> tradeoff_charts(const Json& engines) {
  struct Point {
    double bits, kld;
    std::string name;
  };
  std::vector<Point> points;
  for (const Json& engine : engines) {
    const double bits = number_of(engine, "bits_per_weight", kNone),
                 kld = number_of(member_of(engine, "quality"), "kld", kNone);
    if (std::isfinite(bits) && std::isfinite(kld) && kld > 0)
      points.push_back({bits, kld, text_of(engine, "name")});
  }
  std::sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
    return a.bits < b.bits || (a.bits == b.bits && a.kld < b.kld);
  });
  Series all{.name = "engine", .color = 0, .named_points = true};
  Series front{.name = "front", .mark = Series::Mark::kLine, .color = 2};
  double least = std::numeric_limits<double>::infinity();
  for (const Point& point : points) {
    all.x.push_back(point.bits);
    all.y.push_back(point.kld);
    all.labels.push_back(point.name);
    if (point.kld >= least) continue;
    least = point.kld;
    front.x.push_back(point.bits);
    front.y.push_back(point.kld);
  }
  return {{.id = "pareto",
           .title = "Divergence against size",
           .x_label = "bits per weight of the whole model",
           .y_label = "KL divergence (nats)",
           .log_y = true,
           .series = {std::move(front), std::move(all)}}};
}

}  // namespace whit
