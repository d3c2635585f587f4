// whit quantize MODEL -o OUT, and whit build MODEL: the same with defaults, kept in the cache.
#include <malloc.h>

#include <chrono>

#include "api/preflight.h"
#include "api/report_data.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/quality_options.h"
#include "cli/report_options.h"

namespace whit::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct QuantizeOptionsOfUser {
  std::string model, mode = "awq", scheme, head = "int8", activations = "dynamic", output;
  int64_t group_size = 128;
  bool symmetric = false, two_level = false, propagate = false, json = false, rebuild = false,
       dry_run = false;
  std::optional<double> alpha;
  MixedRequest mixed;
  std::string salient = "0", rotate = "false";
  CalibrationRequest calibration;
  std::string statistics;
  QualityRequest quality;
  std::vector<std::string> reports;
  MachineOptions machine;
};

void add_options(CLI::App& app, QuantizeOptionsOfUser& user) {
  add_model(app, user.model);
  app.add_option(
         "--mode", user.mode,
         "Algorithm: auto (closest to the original, slowest), awq, smoothquant or rtn (round "
         "to nearest); gptq, awq-gptq and smoothquant-gptq compensate each weight's "
         "rounding in the weights after it")
      ->check(CLI::IsMember(
          {"auto", "awq", "smoothquant", "rtn", "gptq", "awq-gptq", "smoothquant-gptq"}))
      ->capture_default_str();
  app.add_option(
         "--scheme", user.scheme,
         "Numerics of the linears, weights x activations: w4a16, w4a8, w8a8, w8a16, fp8 (both "
         "e4m3), w4afp8 (int4 x e4m3) or bf16 [w4a16; smoothquant: w8a8]; mixed or mixed-a8 "
         "(activations in int8): the best scheme for each group "
         "of linears within a target, --mode auto only")
      ->check(CLI::IsMember(
          {"w4a16", "w4a8", "w8a8", "w8a16", "fp8", "w4afp8", "bf16", "mixed", "mixed-a8"}));
  app.add_option("--target-bpw", user.mixed.target.bits_per_weight,
                 "mixed: at most this many bits per weight of the decoder's linears, scales "
                 "included");
  app.add_option("--target-decode-tps", user.mixed.target.tokens_per_s,
                 "mixed: at least this many tokens per second in decoding one sequence, predicted "
                 "from kernels timed on this machine");
  app.add_option("--salient", user.salient,
                 "auto, int4: this share of the input channels, those of largest activations, keep "
                 "a bf16 weight beside the rounded one (0.005: half a percent); 'auto': half a "
                 "percent in those groups of linears whose held-out loss it lowers by more than "
                 "its bits would elsewhere. It makes the engine a little slower")
      ->check(CLI::Range(0.0, 0.1) | CLI::IsMember({"auto"}))
      ->capture_default_str();
  app.add_flag("--rotate", user.rotate,
               "Quantize in a basis without outlier channels: the residual stream times a Hadamard "
               "matrix, folded into the weights; a tied head becomes a table of its own. "
               "--rotate=auto: only where a few layers, quantized in both, lose less that way")
      ->check(CLI::IsMember({"true", "false", "auto"}));
  app.add_option("--sensitivity-tokens", user.mixed.tokens,
                 "mixed: held-out tokens that the study measures divergences on")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--group-size", user.group_size,
                 "Weights that share a scale, int4 only: 32, 64 or 128")
      ->check(CLI::IsMember({32, 64, 128}))
      ->capture_default_str();
  app.add_flag("--symmetric", user.symmetric,
               "int4 without zero points: a little smaller, a little less exact");
  app.add_flag(
      "--two-level", user.two_level,
      "w4a8: the scales of a row are multiples 1 to 15 of one step, which keeps its sums in "
      "integers: faster prompts and batches, a little less exact");
  app.add_option("--head", user.head, "Embedding table and lm_head: int8 (free in quality) or bf16")
      ->check(CLI::IsMember({"int8", "bf16"}))
      ->capture_default_str();
  app.add_option("--alpha", user.alpha, "SmoothQuant: this migration strength in place of a search")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--activations", user.activations,
                 "8-bit activations: dynamic (a scale for each token) or static (one for each "
                 "layer, w8a8 and fp8 only)")
      ->check(CLI::IsMember({"dynamic", "static"}))
      ->capture_default_str();
  app.add_flag("--propagate", user.propagate,
               "Calibrate each layer on what the quantized layers before it put out");
  add_calibration(app, user.calibration);
  app.add_option("--stats", user.statistics,
                 "Statistics of 'whit calibrate' in place of --calib; every mode but auto")
      ->excludes("--calib");
  add_quality(app, user.quality);
  add_report(app, user.reports);
  app.add_flag("--dry-run", user.dry_run,
               "Only say what it needs: peak memory, time, size, what does not divide");
  user.machine.add_to(app);
  user.machine.add_backend(
      app,
      "Where calibration and searches run: cpu, or cuda for an NVIDIA GPU (every mode but auto)");
  add_json(app, user.json);
}

bool is_mixed(const QuantizeOptionsOfUser& user) { return user.scheme.starts_with("mixed"); }

QuantScheme scheme_of(const QuantizeOptionsOfUser& user) {
  std::string name = !user.scheme.empty()                   ? user.scheme
                     : user.mode.starts_with("smoothquant") ? "w8a8"
                                                            : "w4a16";
  if (is_mixed(user)) name = name == "mixed" ? "w4a16" : "w4a8";
  if (user.two_level && is_mixed(user))
    throw Error(ErrorKind::kUnsupported, "--two-level needs --scheme w4a8, not {}", user.scheme);
  QuantScheme scheme = QuantScheme::preset(name, user.group_size, user.symmetric, user.two_level);
  if (user.activations == "static") {
    if (name != "w8a8" && name != "fp8")
      throw Error(ErrorKind::kUnsupported,
                  "--activations static needs --scheme w8a8 or fp8, not {}", name);
    scheme.input_activations->dynamic = false;
    scheme.input_activations->strategy = QuantStrategy::kTensor;
  }
  if (user.alpha && !user.mode.starts_with("smoothquant"))
    throw Error(ErrorKind::kInvalidArgument,
                "--alpha is SmoothQuant's; with --mode {} it has no meaning", user.mode);
  return scheme;
}

SalientRequest salient_of(const std::string& text) {
  if (text == "auto")
    return {.share = kSalientShare, .groups = SalientRequest::Groups::kWherePaying};
  return {.share = std::stod(text)};  // checked by the option
}

BuildPlan plan_of(const QuantizeOptionsOfUser& user) {
  BuildPlan plan;
  plan.model_path = user.model;
  plan.recipe = {.mode = user.mode,
                 .scheme = scheme_of(user),
                 .head = user.head,
                 .alpha = user.alpha,
                 .salient = salient_of(user.salient),
                 .output = user.output};
  if (is_mixed(user)) {
    plan.recipe.mixed = user.mixed;
    plan.recipe.mixed->target.ppl_increase = user.quality.limits.ppl_increase;
  } else if (user.mixed.target.any()) {
    throw Error(ErrorKind::kInvalidArgument,
                "--target-bpw and --target-decode-tps choose a mixed scheme: they need --scheme "
                "mixed or mixed-a8");
  }
  plan.calibration = user.calibration;
  plan.statistics = user.statistics;
  plan.quality = user.quality;
  plan.backend = parse_backend(user.machine.backend);
  plan.resumable = true;
  plan.propagate = user.propagate;
  plan.rotate = user.rotate == "auto"   ? BuildPlan::Rotate::kByLoss
                : user.rotate == "true" ? BuildPlan::Rotate::kYes
                                        : BuildPlan::Rotate::kNo;
  return plan;
}

// Sums over all groups of the model: a mean of ratios would hide a bad group.
std::string error_line(const QuantizeSummary& summary) {
  double rtn = 0, chosen = 0;
  const GroupReport* worst = nullptr;
  for (const GroupReport& report : summary.reports) {
    rtn += report.rtn_error;
    chosen += report.error;
    if (worst == nullptr || report.error > worst->error) worst = &report;
  }
  if (worst == nullptr || !(rtn > 0)) return "";
  return fmt::format(
      "output error {:.2f} x that of plain rounding; largest in {} ({:.2g} of its energy)\n",
      chosen / rtn, worst->name, worst->error);
}

std::string device_memory(const QuantizeSummary& summary) {
  if (summary.device.empty()) return "";
  return fmt::format(" and {} of the GPU's",
                     format_bytes(static_cast<double>(summary.peak_device_bytes)));
}

std::string quality_line(const Json& quality) {
  if (quality.is_null()) return "";
  return fmt::format("against the original on {}: PPL ratio {:.4f}, KL divergence {:.4f}\n",
                     quality["text"].get<std::string>(), quality["ppl_ratio"].get<double>(),
                     quality["kld"].get<double>());
}

void write_page(const QuantizeSummary& summary, const QuantizeOptionsOfUser& user,
                const Model& model, const Machine& machine, double seconds) {
  if (user.reports.empty()) return;
  const Model engine = Model::open(summary.output);
  const EngineManifest& manifest = engine.engine()->manifest();
  Json document = new_report(fmt::format("{} {} of {}", manifest.mode, manifest.scheme_name(),
                                         std::filesystem::path(user.model).filename().string()),
                             model);
  document["engines"].push_back(
      report_engine(fmt::format("{} {}", manifest.mode, manifest.scheme_name()), engine, &summary));
  document["engines"][0]["peak_memory_bytes"] = peak_memory_bytes();
  if (!summary.rotation.is_null()) {
    document["engines"][0]["rotation"] = summary.rotation;
    add_figure(document, "basis", summary.rotation.at("why").get<std::string>());
  }
  document["calibration"] = manifest.calibration;
  document["recommendation"] = recommend(document["engines"]);
  add_figure(document, "engine", summary.output.string());
  add_figure(document, "time", format_seconds(seconds));
  add_figure(document, "peak memory", format_bytes(static_cast<double>(peak_memory_bytes())));
  add_figure(document, "threads", fmt::format("{}", machine.pool.size()));
  add_figure(document, "instruction set", std::string(cpu::name(machine.isa)));
  if (summary.resumed_layers > 0)
    add_figure(document, "went on behind",
               fmt::format("{} layers of an interrupted run", summary.resumed_layers));
  write_reports(user.reports, document);
}

void print_notice(const std::string& text) { fmt::print(stderr, "whit: {}\n", text); }

// Of mixed precision: the front that the plan was chosen from.
void print_front(const Json& mixed) {
  std::vector<std::vector<std::string>> rows;
  const auto row = [](const Json& plan, std::string note) -> std::vector<std::string> {
    return {fmt::format("{:.3f}", plan.value("bits_per_weight", 0.0)),
            fmt::format("{:.4f}", plan.value("kld", 0.0)),
            fmt::format("{:.2f} %", 100 * plan.value("ppl_increase", 0.0)),
            plan.contains("tokens_per_s") ? fmt::format("{:.1f}", plan.value("tokens_per_s", 0.0))
                                          : "-",
            std::move(note)};
  };
  for (const Json& plan : mixed.at("front")) rows.push_back(row(plan, ""));
  rows.push_back(row(mixed.at("chosen"), "chosen"));
  fmt::print("predicted from the sensitivity study:\n");
  print_table({"bits per weight", "KLD", "PPL", "decode t/s", ""}, rows, 0);
}

int report(const QuantizeSummary& summary, const QuantizeOptionsOfUser& user, double seconds) {
  for (const std::string& warning : summary.warnings)
    fmt::print(stderr, "whit: warning: {}\n", warning);
  if (user.json) {
    Json json = summary_json(summary);
    json["seconds"] = seconds;
    json["peak_memory_bytes"] = peak_memory_bytes();
    print_json(json);
    return 0;
  }
  if (summary.resumed_layers > 0)
    fmt::print(stderr, "whit: went on behind the {} layers of an interrupted run\n",
               summary.resumed_layers);
  fmt::print("{}\n{}, {:.2f} bits per weight; {} s, peak memory {}{}\n{}{}",
             summary.output.string(), format_bytes(static_cast<double>(summary.engine_bytes)),
             summary.bits_per_weight, fmt::format("{:.1f}", seconds),
             format_bytes(static_cast<double>(peak_memory_bytes())), device_memory(summary),
             error_line(summary), quality_line(summary.quality));
  if (!summary.mixed.empty()) print_front(summary.mixed);
  return 0;
}

int dry_run(const QuantizeOptionsOfUser& user, const Model& model, const BuildPlan& plan,
            Machine& machine) {
  if (plan.backend == Backend::kCuda)
    throw Error(ErrorKind::kUnsupported, "--dry-run predicts runs of --backend cpu alone");
  const Preflight result = preflight(model, plan, machine.isa, machine.pool);
  if (user.json) {
    print_json(to_json(result));
    return 0;
  }
  const auto bytes = [](int64_t count) { return format_bytes(static_cast<double>(count)); };
  fmt::print("weights of the engine {}{}\npeak memory about {} ({} available)\n",
             bytes(result.engine_bytes),
             result.disk_free < 0 ? "" : fmt::format(" ({} free)", bytes(result.disk_free)),
             bytes(result.peak_bytes), bytes(result.available_bytes));
  for (const auto& part : result.memory)
    fmt::print("  {:>9}  {}\n", format_bytes(part.value), part.name);
  fmt::print("time about {} with {} threads\n", format_seconds(result.seconds),
             machine.pool.size());
  for (const auto& part : result.time)
    fmt::print("  {:>9}  {}\n", format_seconds(part.value), part.name);
  for (const auto& each : result.tensor_parallel)
    fmt::print("tensor parallel over {}: {}\n", each.ranks,
               each.obstacle.empty() ? "divides" : "does not divide: " + each.obstacle);
  for (const std::string& note : result.notes) fmt::print("note: {}\n", note);
  fmt::print("nothing was written; this took {:.1f} s\n", result.measured_s);
  return 0;
}

// glibc raises the size from which memory is given back when it is freed, up to 32 MB, by what it
// sees: every matrix then comes from a heap that only grows, to more than twice what is in use.
void give_back_freed_matrices() { mallopt(M_MMAP_THRESHOLD, 1 << 20); }

int quantize(const QuantizeOptionsOfUser& user) {
  give_back_freed_matrices();
  const auto start = Clock::now();
  const BuildPlan plan = plan_of(user);
  check_reports(user.reports);
  Machine machine(user.machine);
  const Model model = Model::open(user.model);
  if (user.dry_run) return dry_run(user, model, plan, machine);
  const QuantizeSummary summary = build(model, plan, machine.isa, machine.pool, print_notice);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  write_page(summary, user, model, machine, seconds);
  return report(summary, user, seconds);
}

int build_cached(const QuantizeOptionsOfUser& user) {
  give_back_freed_matrices();
  const auto start = Clock::now();
  BuildPlan plan = plan_of(user);
  check_reports(user.reports);
  const Model model = Model::open(user.model);
  if (plan.recipe.output.empty()) plan.recipe.output = cached_engine_path(model, plan);
  if (user.dry_run) {
    Machine machine(user.machine);
    return dry_run(user, model, plan, machine);
  }
  if (!user.rebuild && engine_state(plan.recipe.output, plan.recipe) == EngineState::kValid) {
    const Model engine = Model::open(plan.recipe.output);
    if (user.json)
      print_json({{"output", plan.recipe.output.string()},
                  {"reused", true},
                  {"engine_bytes", engine.stored_bytes()},
                  {"bits_per_weight", engine.bits_per_weight()}});
    else
      fmt::print("{}\nis there already and valid ({}, {:.2f} bits per weight)\n",
                 plan.recipe.output.string(),
                 format_bytes(static_cast<double>(engine.stored_bytes())),
                 engine.bits_per_weight());
    return 0;
  }
  Machine machine(user.machine);
  const QuantizeSummary summary = build(model, plan, machine.isa, machine.pool, print_notice);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  write_page(summary, user, model, machine, seconds);
  return report(summary, user, seconds);
}

}  // namespace

Action add_quantize(CLI::App& app) {
  auto user = std::make_shared<QuantizeOptionsOfUser>();
  add_options(app, *user);
  app.add_option("-o,--output", user->output,
                 "The engine directory to write; an older engine there is replaced")
      ->required();
  app.footer(R"(
The engine directory holds the low-bit weights, the tokenizer and the record of what was done; it runs on any x86-64 CPU.
It appears when it is whole: a failed run leaves nothing. An interrupted or killed one leaves .OUT.resume-… beside it, and
the same command goes on from there, to the same bytes.

Examples:
  whit quantize MODEL --mode auto --scheme w4a8 -o OUT           the best that is known here, in minutes
  whit quantize MODEL --mode awq --scheme w4a16 -o OUT           smallest, for decoding
  whit quantize MODEL --mode awq --scheme w4a8 -o OUT            as small, faster prompts
  whit quantize MODEL --mode smoothquant --scheme w8a8 -o OUT    closest to the original
  whit quantize MODEL --mode auto --scheme w4a8 --dry-run -o OUT         how long, how much memory
  whit quantize MODEL --evaluate --report out.html -o OUT                a page with charts of what was done
  whit quantize MODEL --max-ppl-increase 5% --max-kld 0.05 -o OUT        refused where it loses more
  whit quantize MODEL --calib my-domain.txt -o OUT               calibrated on your text
  whit quantize MODEL --calib a.txt:0.7 --calib chat.jsonl:0.3 -o OUT    … on a mixture)");
  return [user] { return quantize(*user); };
}

Action add_build(CLI::App& app) {
  auto user = std::make_shared<QuantizeOptionsOfUser>();
  add_options(app, *user);
  app.add_option("-o,--output", user->output, "The engine directory to write [in the cache]");
  app.add_flag("--rebuild", user->rebuild, "Build although a valid engine is there");
  app.footer(R"(
Engines are kept under ${XDG_CACHE_HOME:-~/.cache}/whit/engines, one for each model and settings; one that is there and
valid is not built again.

Example:
  whit build MODEL --scheme w4a8)");
  return [user] { return build_cached(*user); };
}

}  // namespace whit::cli
