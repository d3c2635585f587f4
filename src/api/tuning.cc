#include "api/tuning.h"

#include <algorithm>
#include <fstream>

#include "api/cache.h"
#include "base/file.h"
#include "evaluate/bench.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFormat = "whit-tuning";
constexpr int64_t kFormatVersion = 1;
// Medians of three runs of the same thing differ by about this much on a machine that does little
// else.
constexpr double kWorthwhile = 1.03;

// Of what the choice depends on besides the engine.
std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 1);
  return "";
}

Json machine_json() {
  return {
      {"cpu", cpu_model()}, {"isa", cpu::name(cpu::detected_isa())}, {"cpus", available_cpus()}};
}

std::string weights_digest(const fs::path& engine) {
  const std::string where = (engine / "engine.json").string();
  const Json manifest = parse_json(read_file(where, 256 << 20), where);
  const auto member = [](const Json& object, const char* key) {
    return object.is_object() ? object.value(key, Json()) : Json();
  };
  return json_get<std::string>(member(member(manifest, "files"), "weights.safetensors"), "xxh3_128",
                               where);
}

fs::path path_for(const std::string& engine_digest) {
  const std::string key = machine_json().dump() + engine_digest;
  return cache_root() / "tuning" /
         (digest({reinterpret_cast<const uint8_t*>(key.data()), key.size()}).substr(0, 16) +
          ".json");
}

Tuning tuning_from_json(const Json& json, const std::string& engine_digest,
                        const std::string& where) {
  const auto unlike = [&](std::string_view what) {
    throw Error(ErrorKind::kInvalidData, "{}: it is of another {}", where, what);
  };
  if (json_get<std::string>(json, "format", where) != kFormat ||
      json_get<int64_t>(json, "format_version", where) != kFormatVersion)
    unlike("format");
  if (json.value("machine", Json()) != machine_json()) unlike("machine");
  if (json_get<std::string>(json, "engine", where) != engine_digest) unlike("engine");
  Tuning tuning;
  const Json trials = json.value("trials", Json());
  if (!trials.is_array())
    throw Error(ErrorKind::kInvalidData, "{}: \"trials\" must be a list", where);
  for (const Json& entry : trials) {
    const TuningTrial trial = {
        .isa = cpu::parse_isa(json_get<std::string>(entry, "isa", where)),
        .threads = static_cast<int>(
            std::clamp<int64_t>(json_get<int64_t>(entry, "threads", where), 0, INT32_MAX)),
        .prefill_tokens_per_s = json_get<double>(entry, "prefill_tokens_per_s", where),
        .decode_tokens_per_s = json_get<double>(entry, "decode_tokens_per_s", where)};
    if (trial.isa > cpu::detected_isa() || trial.threads < 1 || trial.threads > available_cpus())
      throw Error(ErrorKind::kInvalidData, "{}: this machine has no {} on {} CPUs", where,
                  cpu::name(trial.isa), trial.threads);
    tuning.trials.push_back(trial);
  }
  const int64_t chosen = json_get<int64_t>(json, "chosen", where);
  if (chosen < 0 || chosen >= std::ssize(tuning.trials))
    throw Error(ErrorKind::kInvalidData, "{}: \"chosen\" is {}, of {} trials", where, chosen,
                tuning.trials.size());
  tuning.chosen = static_cast<size_t>(chosen);
  return tuning;
}

TuningTrial measure(const fs::path& engine, cpu::Isa isa, int threads) {
  ThreadPool pool(threads);
  Model model = Model::open(engine, Verification::kLater);
  const int64_t context = std::min<int64_t>(512, model.config().max_position_embeddings);
  LoadedModel loaded(std::chrono::steady_clock::now(), std::move(model),
                     {.max_tokens = 256, .max_context = context, .max_logit_rows = 1, .isa = isa},
                     pool);
  const std::vector<BenchRow> rows = bench(*loaded.executor,
                                           {.prompts = {std::min<int64_t>(256, context)},
                                            .generations = {std::min<int64_t>(64, context)},
                                            .repetitions = 3,
                                            .kv_dtype = loaded.kv_format("auto")},
                                           MachineLimits());
  return {isa, threads, rows.at(0).tokens_per_s, rows.at(1).tokens_per_s};
}

}  // namespace

Json to_json(const Tuning& tuning) {
  Json trials = Json::array();
  for (const TuningTrial& trial : tuning.trials)
    trials.push_back({{"isa", cpu::name(trial.isa)},
                      {"threads", trial.threads},
                      {"prefill_tokens_per_s", trial.prefill_tokens_per_s},
                      {"decode_tokens_per_s", trial.decode_tokens_per_s}});
  return {{"chosen", tuning.chosen}, {"trials", trials}};
}

size_t choose(const std::vector<TuningTrial>& trials) {
  const auto best = std::min_element(
      trials.begin(), trials.end(),
      [](const TuningTrial& a, const TuningTrial& b) { return a.request_s() < b.request_s(); });
  return trials.front().request_s() > kWorthwhile * best->request_s() ? best - trials.begin() : 0;
}

Tuning tune(const fs::path& engine) {
  if (!EngineDirectory::is_engine(engine))
    throw Error(ErrorKind::kInvalidArgument,
                "{} is no engine directory; choices are stored for engines ('whit quantize' makes "
                "one)",
                engine.string());
  Tuning tuning;
  const int cpus = available_cpus();
  const cpu::Isa best = cpu::detected_isa();
  tuning.trials.push_back(measure(engine, best, cpus));
  for (const cpu::Isa isa : {cpu::Isa::kAvx512, cpu::Isa::kAvx2})
    if (isa < best) tuning.trials.push_back(measure(engine, isa, cpus));
  const cpu::Isa isa = tuning.trials[choose(tuning.trials)].isa;
  double least = tuning.trials[choose(tuning.trials)].request_s();
  for (int threads = cpus / 2; threads >= 1; threads /= 2) {
    tuning.trials.push_back(measure(engine, isa, threads));
    if (tuning.trials.back().request_s() > least) break;
    least = tuning.trials.back().request_s();
  }
  tuning.chosen = choose(tuning.trials);
  return tuning;
}

fs::path tuning_path(const fs::path& engine) { return path_for(weights_digest(engine)); }

fs::path store_tuning(const fs::path& engine, const Tuning& tuning) {
  const std::string engine_digest = weights_digest(engine);
  Json json = {{"format", kFormat},
               {"format_version", kFormatVersion},
               {"tool_version", WHIT_VERSION},
               {"machine", machine_json()},
               {"engine", engine_digest}};
  json.update(to_json(tuning));
  const fs::path path = path_for(engine_digest);
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  write_file(path, json.dump(1) + "\n");
  return path;
}

std::optional<Tuning> stored_tuning(const fs::path& engine,
                                    const std::function<void(const std::string&)>& warn) {
  fs::path path;
  try {
    std::error_code error;
    if (!EngineDirectory::is_engine(engine) || !fs::is_directory(cache_root() / "tuning", error))
      return std::nullopt;
    const std::string engine_digest = weights_digest(engine);
    path = path_for(engine_digest);
    if (!fs::exists(path, error)) return std::nullopt;
    return tuning_from_json(parse_json(read_file(path, 1 << 20), path.string()), engine_digest,
                            path.string());
  } catch (const Error& error) {
    // What is wrong with the engine is told by whoever loads it.
    if (!path.empty())
      warn(fmt::format("{}; ignored, 'whit bench {} --tune' measures anew", error.what(),
                       engine.string()));
    return std::nullopt;
  }
}

}  // namespace whit
