#include "api/build.h"

#include <unistd.h>

#include <cctype>

#include "api/cache.h"
#include "quantize/resume.h"
#include "quantize/rotate.h"
#include "quantize/rotation_trial.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

// The file's or directory's own name, kept to characters that any file system takes.
std::string short_name(const fs::path& model_path) {
  fs::path path = fs::absolute(model_path).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  std::string name = path.stem().string().substr(0, 64);
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') c = '_';
  return name.empty() ? "model" : name;
}

constexpr uint64_t kRotationSeed = 0;

// A rotated copy of a model in a directory beside the output, for as long as it is quantized.
struct RotatedCopy {
  RotatedCopy(const Model& source, const fs::path& output)
      : directory(output, EngineDirectory::is_engine),
        model((write_rotated(source, directory.path() / "model", kRotationSeed),
               Model::open(directory.path() / "model"))) {}
  OutputDirectory directory;  // never committed
  Model model;
};

std::string mixed_key(const Recipe& recipe) {
  if (!recipe.mixed) return "no";
  const MixedTarget& target = recipe.mixed->target;
  const auto text = [](const std::optional<double>& value) {
    return value ? fmt::format("{}", *value) : "-";
  };
  return fmt::format("{} {} {} {} {}", text(target.bits_per_weight), text(target.ppl_increase),
                     text(target.tokens_per_s), recipe.mixed->tokens, recipe.mixed->samples);
}

}  // namespace

bool needs_calibration(const Recipe& recipe) {
  return find_algorithm(recipe.mode).needs_calibration || recipe.scheme.static_activations();
}

void check_rotation(const BuildPlan& plan) {
  if (plan.rotate == BuildPlan::Rotate::kNo) return;
  const bool by_loss = plan.rotate == BuildPlan::Rotate::kByLoss;
  if (needs_calibration(plan.recipe) && !plan.statistics.empty())
    throw Error(ErrorKind::kUnsupported,
                "--rotate needs calibration data: statistics are of another basis");
  if (by_loss && !needs_calibration(plan.recipe))
    throw Error(ErrorKind::kUnsupported,
                "--rotate=auto decides by the loss on calibration data, and --mode {} has none",
                plan.recipe.mode);
  if (by_loss && !plan.recipe.scheme.weights)
    throw Error(ErrorKind::kUnsupported,
                "--rotate=auto compares quantized layers; bf16 weights lose nothing in any basis");
}

fs::path cached_engine_path(const Model& model, const BuildPlan& plan) {
  if (model.checkpoint() == nullptr)
    throw Error(ErrorKind::kUnsupported, "{} is an engine already; nothing is to be built from it",
                model.description());
  const Recipe& recipe = plan.recipe;
  const std::string key = fmt::format(
      "{} | {} | {} | {} | {} | alpha {} | mixed {} | salient {} {} | rotate {} | propagate {} | "
      "{}",
      WHIT_VERSION, model.checkpoint()->digest(), recipe.mode, to_json(recipe.scheme).dump(),
      recipe.head, recipe.alpha ? fmt::format("{}", *recipe.alpha) : "searched", mixed_key(recipe),
      recipe.salient.share, recipe.salient.decided_by_loss(), static_cast<int>(plan.rotate),
      plan.propagate,
      !needs_calibration(recipe) ? "none"
      : plan.statistics.empty()  ? calibration_key(plan.calibration)
                                 : StatisticsFile(plan.statistics).info().data.dump());
  const std::string key_digest = digest({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  return cache_root() / "engines" /
         fmt::format("{}-{}-{}-{}", short_name(plan.model_path), recipe.mode, recipe.scheme.name(),
                     key_digest.substr(0, 16));
}

EngineState engine_state(const fs::path& path, const Recipe& recipe) {
  if (!EngineDirectory::is_engine(path)) return EngineState::kMissing;
  try {
    const EngineDirectory engine(path);
    const EngineManifest& manifest = engine.manifest();
    if (manifest.mode == recipe.mode && manifest.scheme == recipe.scheme &&
        manifest.head == recipe.head && manifest.mixed.empty() == !recipe.mixed)
      return EngineState::kValid;
    return EngineState::kDamaged;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInterrupted) throw;
    return EngineState::kDamaged;
  }
}

QuantizeSummary build(const Model& model, const BuildPlan& plan, cpu::Isa isa, ThreadPool& pool,
                      std::function<void(const std::string&)> notice) {
  Recipe recipe = plan.recipe;
  if (recipe.output.empty()) recipe.output = cached_engine_path(model, plan);
  check_recipe(recipe, model);
  check_rotation(plan);
  QuantizeOptions options{.isa = isa, .propagate = plan.propagate, .notice = std::move(notice)};
  std::unique_ptr<Accelerator> accelerator;
  if (plan.backend == Backend::kCuda) {
    check_accelerated(recipe);
    accelerator = open_cuda_accelerator(pool);
  }
  options.accelerator = accelerator.get();
  if (plan.resumable) options.checkpoints = QuantizeOptions::Checkpoints::kPaced;
  std::optional<CalibrationData> data;
  std::optional<StatisticsFile> statistics;
  if (needs_calibration(recipe)) {
    if (plan.statistics.empty())
      data = calibration_data(model, plan.calibration, isa, pool);
    else
      options.statistics = &statistics.emplace(plan.statistics);
  }
  std::optional<RotatedCopy> rotated;
  Json trial;
  if (plan.rotate != BuildPlan::Rotate::kNo) {
    options.source = fmt::format("{} (xxh3 {})", model.description(), model.checkpoint()->digest());
    rotated.emplace(model, recipe.output);
    if (plan.rotate == BuildPlan::Rotate::kByLoss) {
      const RotationTrial tried =
          try_rotation(model, rotated->model, kRotationSeed, recipe, *data, isa, pool);
      if (options.notice) options.notice(tried.told());
      trial = to_json(tried);
      options.source += ", " + tried.told();
      if (!tried.pays()) rotated.reset();
    } else {
      options.source += ", rotated";
    }
    if (rotated) {
      options.original = &model;
      options.passing = rotated->directory.path();
    }
  }
  const auto quantize = [&] {
    QuantizeSummary summary = quantize_model(rotated ? rotated->model : model, {&recipe, 1},
                                             data ? &*data : nullptr, options, pool)
                                  .at(0);
    summary.rotation = std::move(trial);
    if (accelerator) {
      summary.device = accelerator->description();
      summary.peak_device_bytes = accelerator->peak_bytes();
    }
    return summary;
  };
  if (!plan.quality.measure && !plan.quality.limits.any()) return quantize();
  // The engine is made at a place of its own and judged there before it gets its name.
  options.checkpoint_name = recipe.output;
  OutputDirectory judged(recipe.output, EngineDirectory::is_engine);
  recipe.output = judged.path();
  QuantizeSummary summary = quantize();
  summary.output = options.checkpoint_name;
  summary.quality = measure_quality(Model::open(judged.path()), model, plan.quality, isa, pool);
  try {
    check_quality(summary.quality, plan.quality.limits, summary.output.string());
    record_quality(judged.path(), summary.quality);
    judged.commit();
  } catch (...) {
    remove_checkpoints(summary.output);
    throw;
  }
  remove_checkpoints(summary.output);
  return summary;
}

}  // namespace whit
