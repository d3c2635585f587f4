#include "quantize/layer.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace whit {

Json to_json(const GroupReport& report) {
  Json json = {{"name", report.name}, {"algorithm", report.algorithm}};
  if (report.exponent) json["exponent"] = *report.exponent;
  if (report.clipped > 0) json["clipped"] = report.clipped;
  json["rtn_error"] = report.rtn_error;
  json["error"] = report.error;
  if (!report.note.empty()) json["note"] = report.note;
  if (!report.fallbacks.empty()) json["fallbacks"] = report.fallbacks;
  return json;
}

GroupReport group_report_from_json(const Json& json, std::string_view where) {
  GroupReport report{.name = json_get<std::string>(json, "name", where),
                     .algorithm = json_get<std::string>(json, "algorithm", where)};
  if (json.contains("exponent")) report.exponent = json_get<double>(json, "exponent", where);
  const double undefined = std::numeric_limits<double>::quiet_NaN();  // written as null
  report.clipped = json_get_or<double>(json, "clipped", 0, where);
  report.rtn_error = json_get_or<double>(json, "rtn_error", undefined, where);
  report.error = json_get_or<double>(json, "error", undefined, where);
  report.note = json_get_or<std::string>(json, "note", "", where);
  const Json fallbacks = json.value("fallbacks", Json::array());
  if (!fallbacks.is_array())
    throw Error(ErrorKind::kInvalidData, "{}: \"fallbacks\" is no list of texts", where);
  for (const Json& fallback : fallbacks) {
    if (!fallback.is_string())
      throw Error(ErrorKind::kInvalidData, "{}: \"fallbacks\" is no list of texts", where);
    report.fallbacks.push_back(fallback.get<std::string>());
  }
  return report;
}

void judge_statistics(const InputStats& input, GroupReport& report) {
  constexpr int64_t kTokensPerChannel = 4;  // fewer: the moments are mostly noise
  constexpr int kNamed = 8;
  int64_t dead = 0;
  std::string named;
  for (int64_t i = 0; i < input.k; ++i) {
    if (input.max_abs.data<float>()[i] != 0) continue;
    if (++dead <= kNamed) named += fmt::format("{}{}", named.empty() ? "" : ", ", i);
  }
  if (dead > 0)
    report.fallbacks.push_back(
        fmt::format("{} of {} input channels are zero on every calibration token ({}{}): their "
                    "weights are rounded without regard to activations; calibrate on text that "
                    "reaches them",
                    dead, input.k, named, dead > kNamed ? ", …" : ""));
  if (input.search.gram_tokens < kTokensPerChannel * input.k)
    report.fallbacks.push_back(
        fmt::format("{} tokens of calibration for {} input channels are too few (at least {} are "
                    "wanted): give more samples",
                    input.search.gram_tokens, input.k, kTokensPerChannel * input.k));
}

LayerWeights LayerWeights::load(const Graph& graph, NodeRange range, const WeightProvider& provider,
                                ThreadPool& pool) {
  LayerWeights weights;
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRmsNorm) weights.norms[id] = provider.norm(node);
    if (node.op != Op::kLinear) continue;
    const LinearWeight source = provider.linear(node);
    Tensor tensor(DType::kF32, {node.n, node.k});
    pool.parallel_for(node.n, [&](int64_t begin, int64_t end) {
      dequantize_rows(source.view, begin, end, tensor.data<float>() + begin * node.k);
    });
    weights.linears[id] = std::move(tensor);
    if (node.bias) weights.biases[id] = provider.bias(node);
  }
  return weights;
}

LayerWeights LayerWeights::clone(ThreadPool& pool) const {
  LayerWeights copy;
  for (const auto& [id, tensor] : linears) {
    const float* from = tensor.data<float>();
    Tensor to(DType::kF32, tensor.shape());
    pool.parallel_for(tensor.size(), [&](int64_t begin, int64_t end) {
      std::copy(from + begin, from + end, to.data<float>() + begin);
    });
    copy.linears[id] = std::move(to);
  }
  for (const auto& [id, tensor] : biases) copy.biases[id] = tensor.clone();
  for (const auto& [id, tensor] : norms) copy.norms[id] = tensor.clone();
  return copy;
}

const InputStats& LayerTask::stats_of(ValueId value) const {
  for (const InputStats& candidate : stats)
    if (candidate.value == value) return candidate;
  throw Error(ErrorKind::kNotFound, "no calibration statistics for {}", graph.value(value).name);
}

int64_t channel_of_row(const ScalingGroup& group, int64_t row) {
  // Row `row` of v_proj is head row / Dh; its first query head reads it at column head · repeats
  // · Dh.
  if (group.repeats <= 1) return row;
  return row / group.head_dim * group.repeats * group.head_dim + row % group.head_dim;
}

void fold(const ScalingGroup& group, const float* s, const Graph& graph, LayerWeights& weights,
          ThreadPool& pool) {
  for (const NodeId id : group.linears) {
    Tensor& w = weights.linears.at(id);
    const int64_t k = w.dim(1);
    pool.parallel_for(w.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < k; ++i) w.data<float>()[row * k + i] *= s[i];
    });
  }
  const Node& producer = graph.node(group.producer);
  if (producer.op == Op::kRmsNorm) {
    float* norm = weights.norms.at(group.producer).data<float>();
    for (int64_t i = 0; i < producer.n; ++i) norm[i] /= s[i];
    return;
  }
  Tensor& w = weights.linears.at(group.producer);
  const bool bias = weights.biases.contains(group.producer);
  float* biases = bias ? weights.biases.at(group.producer).data<float>() : nullptr;
  pool.parallel_for(producer.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = s[channel_of_row(group, row)];
      for (int64_t i = 0; i < producer.k; ++i) w.data<float>()[row * producer.k + i] /= factor;
      if (bias) biases[row] /= factor;
    }
  });
}

}  // namespace whit
