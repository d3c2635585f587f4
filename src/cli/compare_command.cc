// whit compare MODEL: several ways of quantizing it side by side, from one calibration.
#include <unistd.h>

#include <chrono>

#include "api/report_data.h"
#include "base/embedded.h"
#include "base/progress.h"
#include "cli/child_process.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/compare_study.h"
#include "cli/report_options.h"
#include "evaluate/evaluate.h"

namespace whit::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Windows of the built-in text, which has some thousand tokens: short enough for a dozen of them.
constexpr int64_t kBuiltInContext = 512;
constexpr int64_t kFileContext = 2048;
constexpr int64_t kPromptTokens = 512, kGeneratedTokens = 128;

struct CompareOptions {
  std::string model, output, text, head = "int8";
  std::vector<std::string> engines, recipes, texts, reports;
  int64_t group_size = 128, ctx_size = 0, max_windows = 0;
  int repetitions = 3;
  bool symmetric = false, reuse = false, json = false;
  CalibrationRequest calibration;
  MachineOptions machine;
};

// One line of the comparison.
struct Contender {
  std::string name;
  fs::path path;
  int64_t bytes = 0;
  double bits_per_weight = 0;
  EvalResult quality;  // of the original: only its perplexity
  double prefill = 0, prefill_spread = 0, decode = 0, decode_spread = 0, percent_of_roofline = 0,
         load_s = 0;
  int64_t peak_memory_bytes = 0;
};

struct BuildFigures {
  double seconds = 0;
  int64_t peak_memory_bytes = 0;
  std::vector<QuantizeSummary> summaries;
};

// "awq:w4a16" → a recipe with output DIR/awq-w4a16.
Recipe parse_recipe(const std::string& text, const CompareOptions& user) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == text.size())
    throw Error(
        ErrorKind::kInvalidArgument,
        "recipe \"{}\" is not MODE:SCHEME, like awq:w4a16, awq:w4a8, smoothquant:w8a8 or rtn:w8a16",
        text);
  const std::string mode = text.substr(0, colon), scheme = text.substr(colon + 1);
  find_algorithm(mode);
  return {.mode = mode,
          .scheme = QuantScheme::preset(scheme, user.group_size, user.symmetric),
          .head = user.head,
          .output = fs::path(user.output) / fmt::format("{}-{}", mode, scheme)};
}

std::vector<Recipe> parse_recipes(const CompareOptions& user) {
  std::vector<Recipe> recipes;
  for (const std::string& text : user.recipes) {
    recipes.push_back(parse_recipe(text, user));
    for (size_t i = 0; i + 1 < recipes.size(); ++i)
      if (recipes[i].output == recipes.back().output)
        throw Error(ErrorKind::kInvalidArgument, "recipe \"{}\" is given twice", text);
  }
  if (!recipes.empty() && user.output.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "--recipes needs a directory for their engines (-o DIR)");
  if (recipes.empty() && user.engines.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "nothing is to be compared: give engines, or --recipes like "
                "awq:w4a16,smoothquant:w8a8 with -o DIR");
  return recipes;
}

BuildFigures build_all(const CompareOptions& user, std::vector<Recipe> recipes, Machine& machine) {
  BuildFigures figures;
  if (user.reuse)
    std::erase_if(recipes, [](const Recipe& recipe) {
      return engine_state(recipe.output, recipe) == EngineState::kValid;
    });
  if (recipes.empty()) return figures;
  const auto start = Clock::now();
  const Model model = Model::open(user.model);
  for (const Recipe& recipe : recipes) check_recipe(recipe, model);
  std::optional<CalibrationData> data;
  if (std::any_of(recipes.begin(), recipes.end(), needs_calibration))
    data = calibration_data(model, user.calibration, machine.isa, machine.pool);
  figures.summaries =
      quantize_model(model, recipes, data ? &*data : nullptr, {.isa = machine.isa}, machine.pool);
  figures.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  figures.peak_memory_bytes = peak_memory_bytes();
  return figures;
}

EvalOptions eval_options(const CompareOptions& user, const Model& model) {
  EvalOptions options;
  options.ctx_size = user.ctx_size > 0   ? user.ctx_size
                     : user.text.empty() ? kBuiltInContext
                                         : kFileContext;
  if (user.ctx_size == 0)
    options.ctx_size = std::min(options.ctx_size, model.config().max_position_embeddings);
  options.max_windows = user.max_windows;
  return options;
}

void evaluate_all(const CompareOptions& user, Machine& machine,
                  std::vector<Contender>& contenders) {
  const std::string text =
      user.text.empty() ? std::string(embedded::eval_text()) : read_text_file(user.text);
  LoadedModel original(user.model, {.isa = machine.isa}, machine.pool);
  const std::vector<int32_t> ids = original.model.tokenizer().encode(text);
  EvalOptions options = eval_options(user, original.model);
  options.kv_dtype = options.reference_kv_dtype = original.model.default_kv_dtype();
  std::vector<std::unique_ptr<LoadedModel>> engines;
  std::vector<EvalModel> models;
  for (Contender& contender : contenders) {
    const bool is_original = &contender == &contenders.front();
    if (!is_original) {
      engines.push_back(std::make_unique<LoadedModel>(
          contender.path, ExecutorOptions{.isa = machine.isa}, machine.pool));
      models.push_back({*engines.back()->executor, engines.back()->model.default_kv_dtype()});
    }
    const Model& model = is_original ? original.model : engines.back()->model;
    if (model.config().vocab_size != original.model.config().vocab_size ||
        (!is_original && model.tokenizer().encode(text) != ids))
      throw Error(ErrorKind::kInvalidArgument,
                  "{} has another tokenizer than {}: they cannot be compared",
                  contender.path.string(), user.model);
    contender.bytes = model.stored_bytes();
    contender.bits_per_weight = model.bits_per_weight();
  }
  if (models.empty()) {
    contenders[0].quality = evaluate(*original.executor, nullptr, ids, options);
    return;
  }
  const std::vector<EvalResult> results = evaluate(models, original.executor.get(), ids, options);
  for (size_t i = 0; i < results.size(); ++i) contenders[i + 1].quality = results[i];
  contenders[0].quality.ppl = *results[0].reference_ppl;
  contenders[0].quality.tokens = results[0].tokens;
}

// In a process of its own, so that its peak memory is this model's alone.
void measure_speed(const CompareOptions& user, const Machine& machine, Contender& contender) {
  const int64_t context = Model::open(contender.path).config().max_position_embeddings;
  const std::string output = run_self(
      {"bench", contender.path.string(), "-p", fmt::format("{}", std::min(kPromptTokens, context)),
       "-n", fmt::format("{}", std::min(kGeneratedTokens, context)), "-r",
       fmt::format("{}", user.repetitions), "-t", fmt::format("{}", machine.pool.size()), "--isa",
       std::string(cpu::name(machine.isa)), "--json"});
  const std::string where = "the output of whit bench";
  const Json json = parse_json(output, where);
  contender.peak_memory_bytes = json_get<int64_t>(json, "peak_memory_bytes", where);
  contender.load_s = json_get<double>(json, "load_s", where);
  for (const Json& row : json.at("rows")) {
    const bool prefill = json_get<std::string>(row, "test", where).starts_with("pp");
    (prefill ? contender.prefill : contender.decode) = json_get<double>(row, "tokens_per_s", where);
    (prefill ? contender.prefill_spread : contender.decode_spread) =
        json_get<double>(row, "spread", where);
    if (!prefill)
      contender.percent_of_roofline = json_get<double>(row, "percent_of_roofline", where);
  }
}

Json to_json(const Contender& contender) {
  Json json = {{"name", contender.name},
               {"path", contender.path.string()},
               {"bytes", contender.bytes},
               {"bits_per_weight", contender.bits_per_weight},
               {"pp512", contender.prefill},
               {"pp512_spread", contender.prefill_spread},
               {"tg128", contender.decode},
               {"tg128_spread", contender.decode_spread},
               {"percent_of_roofline", contender.percent_of_roofline},
               {"load_s", contender.load_s},
               {"peak_memory_bytes", contender.peak_memory_bytes}};
  json.update(whit::to_json(contender.quality));
  return json;
}

// The contender, the original left out, with the smallest value of `key`.
template <typename Key>
const Contender& best(const std::vector<Contender>& contenders, Key key) {
  return *std::min_element(contenders.begin() + 1, contenders.end(),
                           [&](const Contender& a, const Contender& b) { return key(a) < key(b); });
}

struct Choices {
  const Contender &accuracy, &size, &prefill, &decode;
};

Choices choices_of(const std::vector<Contender>& contenders) {
  return {best(contenders, [](const Contender& c) { return c.quality.kld.value_or(1e300); }),
          best(contenders, [](const Contender& c) { return static_cast<double>(c.bytes); }),
          best(contenders, [](const Contender& c) { return -c.prefill; }),
          best(contenders, [](const Contender& c) { return -c.decode; })};
}

void print_text(const std::vector<Contender>& contenders, const BuildFigures& figures) {
  std::vector<std::vector<std::string>> rows;
  for (const Contender& each : contenders) {
    const EvalResult& quality = each.quality;
    rows.push_back(
        {each.name, format_bytes(static_cast<double>(each.bytes)),
         fmt::format("{:.2f}", each.bits_per_weight), fmt::format("{:.3f}", quality.ppl),
         quality.ppl_ratio ? fmt::format("{:.4f}", *quality.ppl_ratio) : "1",
         quality.kld ? fmt::format("{:.4f}", *quality.kld) : "0",
         quality.top1_agreement ? fmt::format("{:.1f} %", 100 * *quality.top1_agreement) : "100 %",
         fmt::format("{:.0f} ± {:.0f}", each.prefill, each.prefill_spread),
         fmt::format("{:.1f} ± {:.1f}", each.decode, each.decode_spread),
         format_bytes(static_cast<double>(each.peak_memory_bytes))});
  }
  print_table({"model", "size", "bits/w", "PPL", "PPL/FP", "KLD", "top-1", "pp512 t/s", "tg128 t/s",
               "memory"},
              rows);
  if (figures.seconds > 0)
    fmt::print("\nbuilt {} engines from one calibration in {} (min:s), peak memory {}\n",
               figures.summaries.size(), format_seconds(figures.seconds),
               format_bytes(static_cast<double>(figures.peak_memory_bytes)));
  if (contenders.size() < 2) return;
  const Choices choices = choices_of(contenders);
  fmt::print(
      "\nChoose for accuracy {} (KLD {:.4f}), for size {} ({}), for prefill {} ({:.0f} t/s), for "
      "decode {} ({:.1f} t/s).\n",
      choices.accuracy.name, choices.accuracy.quality.kld.value_or(0), choices.size.name,
      format_bytes(static_cast<double>(choices.size.bytes)), choices.prefill.name,
      choices.prefill.prefill, choices.decode.name, choices.decode.decode);
}

Json to_json(const std::vector<Contender>& contenders, const BuildFigures& figures) {
  Json rows = Json::array(), builds = Json::array();
  for (const Contender& each : contenders) rows.push_back(to_json(each));
  for (const QuantizeSummary& summary : figures.summaries) builds.push_back(summary_json(summary));
  Json json = {{"rows", rows},
               {"build",
                {{"seconds", figures.seconds},
                 {"peak_memory_bytes", figures.peak_memory_bytes},
                 {"engines", builds}}}};
  if (contenders.size() > 1) {
    const Choices choices = choices_of(contenders);
    json["choose"] = {{"accuracy", choices.accuracy.name},
                      {"size", choices.size.name},
                      {"prefill", choices.prefill.name},
                      {"decode", choices.decode.name}};
  }
  return json;
}

// A stage's name, for people who watch.
void announce(const CompareOptions& user, std::string_view stage) {
  if (user.json || ::isatty(STDERR_FILENO) != 1) return;
  fmt::print(stderr, "{}\n", stage);
}

// Several sets of calibration data, or several texts.
bool is_study(const CompareOptions& user) {
  return user.texts.size() > 1 || user.calibration.source.find('\n') != std::string::npos;
}

int study(const CompareOptions& user) {
  if (!user.engines.empty() || user.recipes.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "several --calib or --text compare calibration data: give --recipes like awq:w4a8 "
                "with -o DIR, and no engines");
  Machine machine(user.machine);
  return compare_calibration({.model = user.model,
                              .recipes = parse_recipes(user),
                              .calibration = user.calibration,
                              .texts = user.texts,
                              .ctx_size = user.ctx_size > 0 ? user.ctx_size : kBuiltInContext,
                              .max_windows = user.max_windows > 0 ? user.max_windows : 4,
                              .reports = user.reports,
                              .json = user.json},
                             machine);
}

// The page of a comparison.
void report(const CompareOptions& user, const std::vector<Contender>& contenders,
            const BuildFigures& figures, const Machine& machine) {
  if (user.reports.empty()) return;
  const Model original = Model::open(user.model);
  Json document = new_report("Ways of quantizing compared", original);
  for (const Contender& each : contenders) {
    const QuantizeSummary* summary = nullptr;
    for (const QuantizeSummary& candidate : figures.summaries)
      if (candidate.output == each.path) summary = &candidate;
    const Model model = Model::open(each.path);
    Json engine = report_engine(each.name, model, summary);
    engine["quality"] = whit::to_json(each.quality);
    engine["prefill"] = each.prefill;
    engine["decode"] = each.decode;
    engine["peak_memory_bytes"] = each.peak_memory_bytes;
    if (model.engine() != nullptr && !document.contains("calibration"))
      document["calibration"] = model.engine()->manifest().calibration;
    document["engines"].push_back(std::move(engine));
  }
  document["recommendation"] = recommend(document["engines"]);
  if (figures.seconds > 0) {
    add_figure(document, "time to quantize all", format_seconds(figures.seconds));
    add_figure(document, "peak memory of quantizing",
               format_bytes(static_cast<double>(figures.peak_memory_bytes)));
  }
  add_figure(document, "evaluation text",
             user.text.empty() ? "built in: prose, code, dialogue" : user.text);
  add_figure(document, "threads", fmt::format("{}", machine.pool.size()));
  add_figure(document, "instruction set", std::string(cpu::name(machine.isa)));
  write_reports(user.reports, document);
}

int compare(CompareOptions user) {
  check_reports(user.reports);
  if (is_study(user)) return study(user);
  if (!user.texts.empty()) user.text = user.texts.front();
  const std::vector<Recipe> recipes = parse_recipes(user);
  if (!user.text.empty()) read_text_file(user.text);
  for (const std::string& engine : user.engines) Model::open(engine);
  std::vector<Contender> contenders = {{.name = "original", .path = user.model}};
  for (const Recipe& recipe : recipes)
    contenders.push_back(
        {.name = fmt::format("{} {}", recipe.mode, recipe.scheme.name()), .path = recipe.output});
  for (const std::string& engine : user.engines)
    contenders.push_back({.name = engine, .path = engine});
  BuildFigures figures;
  {
    Machine machine(user.machine);
    announce(user, fmt::format("quantizing in {} ways from one calibration", recipes.size()));
    figures = build_all(user, recipes, machine);
    for (const QuantizeSummary& summary : figures.summaries)
      for (const std::string& warning : summary.warnings)
        fmt::print(stderr, "whit: warning: {}\n", warning);
    announce(user, "evaluating against the original");
    evaluate_all(user, machine, contenders);
    announce(user, "measuring speed");
    for (Contender& contender : contenders) measure_speed(user, machine, contender);
    report(user, contenders, figures, machine);
  }
  if (user.json)
    print_json(to_json(contenders, figures));
  else
    print_text(contenders, figures);
  return 0;
}

}  // namespace

Action add_compare(CLI::App& app) {
  auto user = std::make_shared<CompareOptions>();
  add_model(app, user->model);
  app.add_option("ENGINE", user->engines, "Engines of the same model that are there already");
  app.add_option("--recipes", user->recipes, "MODE:SCHEME, comma-separated: quantize in these ways")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("-o,--output", user->output,
                 "Directory for the recipes' engines, one folder MODE-SCHEME for each");
  app.add_flag("--reuse", user->reuse,
               "Keep valid engines of the same recipe that are in the output directory");
  app.add_option("--group-size", user->group_size,
                 "Weights that share a scale, int4 only: 32, 64 or 128")
      ->check(CLI::IsMember({32, 64, 128}))
      ->capture_default_str();
  app.add_flag("--symmetric", user->symmetric, "int4 without zero points");
  app.add_option("--head", user->head, "Embedding table and lm_head: int8 or bf16")
      ->check(CLI::IsMember({"int8", "bf16"}))
      ->capture_default_str();
  add_calibration(app, user->calibration);
  app.add_option(
         "--text", user->texts,
         "The text to evaluate on [a built-in one: prose, code, dialogue]; several, also the "
         "built-in prose, code, chat, german, random, compare calibration data on each")
      ->take_all()
      ->allow_extra_args(false);
  add_report(app, user->reports);
  app.add_option("--ctx-size", user->ctx_size,
                 "Tokens of a window; 0: 512 for the built-in text, 2048 for a file")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--max-windows", user->max_windows, "Score at most so many windows; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32))
      ->capture_default_str();
  app.add_option("-r,--repetitions", user->repetitions, "Measured runs of each speed test")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  user->machine.add_to(app);
  add_json(app, user->json);
  app.footer(R"(
All recipes are calibrated on the same data in one pass. Quality is measured against MODEL: perplexity ratio, mean KL
divergence, share of tokens with the same likeliest successor. Speed and peak memory are those of separate processes.

With --calib given several times, each is a set of its own (a mixture: A.txt:0.7,B.jsonl:0.3), every recipe is calibrated
on every set and judged on every text: what the data changes, and which sets do not represent which texts.

Example:
  whit compare MODEL --recipes awq:w4a16,awq:w4a8,smoothquant:w8a8 --calib self -o engines --report out.html
  whit compare MODEL --recipes awq:w4a8 --calib prose.txt --calib code.txt -o engines)");
  return [user] { return compare(*user); };
}

}  // namespace whit::cli
