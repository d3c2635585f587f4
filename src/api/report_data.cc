#include "api/report_data.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace whit {
namespace {

// A divergence that readers of a model's answers do not notice: that of int8 weights and
// activations with SmoothQuant on small models is .004 to .01.
constexpr double kFaithful = 0.02;

struct Measured {
  std::string name, mode;
  double bits, kld, ratio, decode;
};

std::vector<Measured> measured(const Json& engines) {
  std::vector<Measured> all;
  for (const Json& engine : engines) {
    const Json quality = engine.value("quality", Json::object());
    if (!quality.contains("kld") || !quality["kld"].is_number()) continue;
    all.push_back({engine.value("name", std::string()), engine.value("mode", std::string()),
                   engine.value("bits_per_weight", 0.0), quality["kld"].get<double>(),
                   quality.value("ppl_ratio", 0.0), engine.value("decode", 0.0)});
  }
  return all;
}

std::string told(const Measured& engine) {
  return fmt::format("{} (KL divergence {:.4f}, PPL × {:.4f}, {:.2f} bits per weight)", engine.name,
                     engine.kld, engine.ratio, engine.bits);
}

const Measured* best_of(const std::vector<Measured>& all, bool smoothquant) {
  const Measured* best = nullptr;
  for (const Measured& each : all) {
    const bool fits =
        smoothquant ? each.mode.starts_with("smoothquant") : each.mode.starts_with("awq");
    if (fits && (best == nullptr || each.kld < best->kld)) best = &each;
  }
  return best;
}

// Largest over median channel of every group that has been profiled, before folding.
std::vector<double> outlier_ratios(const Json& engines) {
  std::vector<double> ratios;
  for (const Json& engine : engines) {
    for (const Json& group : engine.value("groups", Json::array())) {
      if (!group.contains("activations")) continue;
      auto channels = group["activations"].value("before", std::vector<double>());
      if (channels.empty()) continue;
      std::sort(channels.begin(), channels.end());
      const double median = channels[channels.size() / 2];
      if (median > 0) ratios.push_back(channels.back() / median);
    }
    if (!ratios.empty()) break;  // engines of one model: their inputs are the same
  }
  std::sort(ratios.begin(), ratios.end());
  return ratios;
}

// What the sensitivity study of mixed precision measured of a group, by its name: "kld" of the
// scheme that was chosen, "schemes" of all.
std::map<std::string, Json> studied_groups(const Json& mixed) {
  std::map<std::string, Json> groups;
  for (const Json& group : mixed.value("groups", Json::array())) {
    Json studied = {{"scheme", group.value("chosen", std::string())}, {"schemes", Json::array()}};
    const double weights = group.value("weights", 0.0);
    for (const Json& candidate : group.value("candidates", Json::array())) {
      const auto scheme = candidate.value("scheme", std::string());
      studied["schemes"].push_back({{"scheme", scheme},
                                    {"bits", candidate.value("bits", 0.0) / weights},
                                    {"kld", candidate.value("kld", 0.0)}});
      if (studied["scheme"] == Json(scheme)) studied["kld"] = candidate.value("kld", 0.0);
    }
    groups[group.value("name", std::string())] = std::move(studied);
  }
  return groups;
}

Json engine_json(const std::string& name, const Model& engine, const QuantizeSummary* summary) {
  Json json = {{"name", name},
               {"bytes", engine.stored_bytes()},
               {"bits_per_weight", engine.bits_per_weight()}};
  if (engine.engine() == nullptr) return json;
  const EngineManifest& manifest = engine.engine()->manifest();
  json["mode"] = manifest.mode;
  json["scheme"] = manifest.scheme.name();
  if (!manifest.quality.empty()) json["quality"] = manifest.quality;
  const std::map<std::string, Json> studied = studied_groups(manifest.mixed);
  if (!studied.empty())
    json["sensitivity"] = {{"target", manifest.mixed.value("target", Json::object())},
                           {"study", manifest.mixed.value("study", Json::object())},
                           {"chosen", manifest.mixed.value("chosen", Json::object())},
                           {"front", manifest.mixed.value("front", Json::array())}};
  std::map<std::string, Json> profiles;
  if (summary != nullptr) {
    json["warnings"] = summary->warnings;
    for (const Json& profile : summary->profiles)
      profiles[profile.value("name", std::string())] = profile;
  }
  Json& groups = json["groups"] = Json::array();
  std::map<std::string, bool> reported;
  for (const Json& report : manifest.report) {
    if (!report.is_object()) continue;
    const std::string group = report.value("name", std::string());
    const auto found = profiles.find(group);
    Json merged = found == profiles.end() ? Json::object() : found->second;
    merged.update(report);
    reported[group] = true;
    groups.push_back(std::move(merged));
  }
  if (summary != nullptr)  // rounding to nearest reports nothing
    for (const Json& profile : summary->profiles)
      if (!reported.contains(profile.value("name", std::string()))) groups.push_back(profile);
  for (Json& group : groups)
    if (const auto found = studied.find(group.value("name", std::string())); found != studied.end())
      group.update(found->second);
  return json;
}

Json recommendation(const Json& engines) {
  const std::vector<Measured> all = measured(engines);
  if (all.empty()) return nullptr;
  const auto least_kld = std::min_element(
      all.begin(), all.end(), [](const Measured& a, const Measured& b) { return a.kld < b.kld; });
  const Measured* faithful = nullptr;  // the smallest that is
  const Measured* smallest = &all.front();
  for (const Measured& each : all) {
    if (each.kld <= kFaithful && (faithful == nullptr || each.bits < faithful->bits))
      faithful = &each;
    if (each.bits < smallest->bits || (each.bits == smallest->bits && each.kld < smallest->kld))
      smallest = &each;
  }
  Json why = Json::array();
  std::string choice =
      fmt::format("Use {}", faithful != nullptr ? faithful->name : least_kld->name);
  if (faithful != nullptr)
    why.push_back(fmt::format("It is the smallest whose divergence is at most {}: {}.", kFaithful,
                              told(*faithful)));
  else
    why.push_back(fmt::format("None has a divergence of at most {}; the least has {}.", kFaithful,
                              told(*least_kld)));
  const Measured& chosen = faithful != nullptr ? *faithful : *least_kld;
  if (smallest->name != chosen.name) {
    choice += fmt::format(" where fidelity counts, {} where size counts", smallest->name);
    why.push_back(fmt::format("The smallest is {}.", told(*smallest)));
  }
  const Measured *awq = best_of(all, false), *smooth = best_of(all, true);
  if (awq != nullptr && smooth != nullptr) {
    const bool same_size = std::fabs(awq->bits - smooth->bits) < 0.1;
    const Measured& winner = awq->kld < smooth->kld ? *awq : *smooth;
    why.push_back(
        same_size ? fmt::format("AWQ against SmoothQuant at the same size: {} against {}: {} is "
                                "closer to the original.",
                                told(*awq), told(*smooth), winner.name)
                  : fmt::format("AWQ against SmoothQuant: {} against {}: {:.1f} times the "
                                "divergence for {:.0f} % of the size.",
                                told(*awq), told(*smooth), awq->kld / std::max(1e-12, smooth->kld),
                                100 * awq->bits / std::max(1e-12, smooth->bits)));
  }
  if (const std::vector<double> ratios = outlier_ratios(engines); !ratios.empty()) {
    const double median = ratios[ratios.size() / 2], most = ratios.back();
    why.push_back(fmt::format(
        "The largest channel of a linear's input is {:.1f} times the median one in the median "
        "group "
        "and {:.0f} times in the worst: {}.",
        median, most,
        most > 50 ? "int8 activations need their outliers moved into the weights (SmoothQuant, or "
                    "AWQ's search under int8 activations)"
                  : "activations are even enough for int8 with little help"));
  }
  return {{"choice", choice + "."}, {"why", why}};
}

// Records are free in form and from a file: what is of another type than it was written with ends
// as an error of ours.
template <typename Make>
Json from_records(const std::string& of, const Make& make) {
  try {
    return make();
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::kInvalidData,
                "{}: what its engine.json records of how it was made is damaged ({}): quantize the "
                "model again, or leave out --report",
                of, error.what());
  }
}

}  // namespace

Json report_engine(const std::string& name, const Model& engine, const QuantizeSummary* summary) {
  return from_records(engine.description(), [&] { return engine_json(name, engine, summary); });
}

Json recommend(const Json& engines) {
  return from_records("an engine", [&] { return recommendation(engines); });
}

}  // namespace whit
