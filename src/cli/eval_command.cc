// whit eval MODEL --text FILE: perplexity, and divergence from a reference.
#include "api/quality_gate.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"
#include "evaluate/evaluate.h"

namespace whit::cli {
namespace {

struct EvalOptionsOfUser {
  std::string model, text, reference;
  EvalOptions eval;
  std::string kv_cache_dtype = "auto";
  bool json = false, record = false;
  MachineOptions machine;
};

ExecutorOptions executor_options(const EvalOptionsOfUser& user, const Machine& machine) {
  return {.max_tokens = std::min<int64_t>(512, user.eval.ctx_size),
          .isa = machine.isa,
          .backend = machine.backend};
}

// Figures into the engine's manifest, measured as a quantization measures them.
int record(const EvalOptionsOfUser& user) {
  const Model engine = Model::open(user.model), original = Model::open(user.reference);
  if (engine.engine() == nullptr)
    throw Error(ErrorKind::kInvalidArgument, "--record: {} is no engine directory", user.model);
  Machine machine(user.machine);
  const QualityRequest request{.limits = {},
                               .text = user.text,
                               .ctx_size = user.text.empty() ? 512 : user.eval.ctx_size,
                               .max_windows = user.eval.max_windows};
  const Json quality = measure_quality(engine, original, request, machine.isa, machine.pool);
  record_quality(user.model, quality);
  if (user.json)
    print_json(quality);
  else
    fmt::print("{}: recorded {}\n", user.model, quality.dump());
  return 0;
}

int eval(const EvalOptionsOfUser& user) {
  if (user.record) return record(user);
  if (user.text.empty())
    throw Error(ErrorKind::kInvalidArgument, "--text is required: the text to score");
  const std::string text = read_text_file(user.text);
  Machine machine(user.machine);
  LoadedModel loaded(user.model, executor_options(user, machine), machine.pool,
                     TokenizerUse::kSoon);
  const std::vector<int32_t> ids = loaded.model.tokenizer().encode(text);
  EvalOptions options = user.eval;
  options.kv_dtype = loaded.kv_format(user.kv_cache_dtype);
  std::optional<LoadedModel> reference;
  if (!user.reference.empty()) {
    reference.emplace(user.reference, executor_options(user, machine), machine.pool);
    options.reference_kv_dtype = reference->model.default_kv_dtype();
    if (reference->model.tokenizer().encode(text) != ids)
      throw Error(ErrorKind::kInvalidArgument,
                  "{} and {} cut the text into different tokens; a reference must have the model's "
                  "tokenizer",
                  user.model, user.reference);
  }
  const EvalResult result =
      evaluate(*loaded.executor, reference ? reference->executor.get() : nullptr, ids, options);
  if (user.json) {
    Json json = to_json(result);
    json["model"] = loaded.model.description();
    if (reference) json["reference"] = reference->model.description();
    json["kv_cache_dtype"] = name(options.kv_dtype.type);
    json["ctx_size"] = options.ctx_size;
    json["peak_memory_bytes"] = peak_memory_bytes();
    print_json(json);
    return 0;
  }
  fmt::print("{}\nPPL {:.4f} ± {:.4f} over {} tokens ({:.1f} s)\n", loaded.model.description(),
             result.ppl, result.ppl_stderr, result.tokens, result.seconds);
  if (result.kld)
    fmt::print(
        "reference PPL {:.4f}, ratio {:.4f}\nKL divergence {:.5f} ± {:.5f}\nsame likeliest token "
        "{:.2f} %\n",
        *result.reference_ppl, *result.ppl_ratio, *result.kld, *result.kld_stderr,
        100 * *result.top1_agreement);
  return 0;
}

}  // namespace

Action add_eval(CLI::App& app) {
  auto user = std::make_shared<EvalOptionsOfUser>();
  add_model(app, user->model);
  app.add_option("--text", user->text, "The text to score [with --record: a built-in one]");
  app.add_option("--ctx-size", user->eval.ctx_size,
                 "Tokens of a window, each scored from an empty context")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--max-windows", user->eval.max_windows, "Score at most so many windows; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32))
      ->capture_default_str();
  app.add_option(
      "--reference", user->reference,
      "MODEL to compare with: adds PPL ratio, KL divergence and agreement on the likeliest token");
  app.add_flag("--record", user->record,
               "Write the figures into the engine, where 'whit serve --max-kld' looks for them")
      ->needs("--reference");
  add_kv_cache_dtype(app, user->kv_cache_dtype);
  user->machine.add_to(app);
  user->machine.add_backend(app);
  add_json(app, user->json);
  app.footer(R"(
Every token of a window but the first is scored; a last partial window is dropped. PPL = exp(mean negative log
likelihood); KLD = mean over scored tokens of KL(reference || model) in nats.

Example:
  whit eval smol-w4a8 --text wiki.test.txt --reference SmolLM2-135M-Instruct.gguf)");
  return [user] { return eval(*user); };
}

}  // namespace whit::cli
