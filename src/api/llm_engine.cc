// The public headers' implementation: settings in, engine ready, requests answered.
#include "whit/llm_engine.h"

#include "api/build.h"
#include "api/engine_state.h"
#include "api/policy.h"
#include "api/state_dict.h"
#include "runtime/chat.h"
#include "whit/quantize.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

BuildPlan plan_of(const fs::path& model_dir, QuantMode mode, const QuantPolicy& policy,
                  const BuildConfig& config) {
  BuildPlan plan;
  plan.model_path = model_dir.empty() ? "state_dict" : model_dir;
  plan.recipe = {
      .mode = std::string(mode_name(mode)),
      .scheme = scheme_of(mode, policy, config.group_size, config.symmetric, config.two_level),
      .head = config.head,
      .output = config.engine_dir};
  plan.calibration = {.source = config.calib,
                      .samples = config.calib_samples,
                      .length = config.calib_length,
                      .seed = config.seed};
  if (statistics_suffice(plan.recipe.mode)) plan.backend = parse_backend(config.backend);
  return plan;
}

void check_threads(const BuildConfig& config) {
  if (config.threads < 0 || config.threads > 1024)
    throw Error(ErrorKind::kInvalidArgument,
                "BuildConfig::threads is {}, expected 0 (all CPUs) … 1024", config.threads);
  if (config.max_model_len < 0)
    throw Error(ErrorKind::kInvalidArgument,
                "BuildConfig::max_model_len is {}; 0 means the model's", config.max_model_len);
  if (config.max_batch_size < 1 || config.max_batch_size > 1024)
    throw Error(ErrorKind::kInvalidArgument, "BuildConfig::max_batch_size is {}, expected 1 … 1024",
                config.max_batch_size);
  parse_backend(config.backend);
}

BuildReport build_or_reuse(const Model& model, const BuildPlan& wanted, cpu::Isa isa,
                           ThreadPool& pool) {
  BuildPlan plan = wanted;
  if (plan.recipe.output.empty()) plan.recipe.output = cached_engine_path(model, plan);
  BuildReport report{.engine_dir = plan.recipe.output};
  if (engine_state(plan.recipe.output, plan.recipe) == EngineState::kValid) {
    const Model engine = Model::open(plan.recipe.output);
    report.reused = true;
    report.engine_bytes = engine.stored_bytes();
    report.bits_per_weight = engine.bits_per_weight();
    return report;
  }
  QuantizeSummary summary = build(model, plan, isa, pool);
  report.engine_bytes = summary.engine_bytes;
  report.bits_per_weight = summary.bits_per_weight;
  report.warnings = std::move(summary.warnings);
  return report;
}

PretrainedConfig public_config(const ModelConfig& config) {
  return {.architecture = config.architecture,
          .model_type = config.model_type,
          .hidden_size = config.hidden_size,
          .intermediate_size = config.intermediate_size,
          .num_hidden_layers = config.num_hidden_layers,
          .num_attention_heads = config.num_attention_heads,
          .num_key_value_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .vocab_size = config.vocab_size,
          .max_position_embeddings = config.max_position_embeddings,
          .rms_norm_eps = config.rms_norm_eps,
          .rope_theta = config.rope.theta,
          .tie_word_embeddings = config.tie_word_embeddings,
          .torch_dtype = config.torch_dtype};
}

}  // namespace

PretrainedConfig PretrainedConfig::from_json_file(const fs::path& path) {
  return public_config(ModelConfig::from_json_file(path));
}

BuildReport build_engine(const fs::path& model_dir, QuantMode mode, const QuantPolicy& policy,
                         const BuildConfig& config) {
  check_threads(config);
  if (mode == QuantMode::NONE)
    throw Error(
        ErrorKind::kInvalidArgument,
        "QuantMode::NONE builds no engine; choose RTN, AWQ, SMOOTHQUANT, GPTQ, AWQ_GPTQ or AUTO");
  const BuildPlan plan = plan_of(model_dir, mode, policy, config);
  const cpu::Isa isa = resolve_isa(config.isa);
  ThreadPool pool(config.threads);
  return build_or_reuse(Model::open(model_dir), plan, isa, pool);
}

LLMEngine::State::State(const BuildConfig& config, fs::path path_to_run, Model model, cpu::Isa isa)
    : path(std::move(path_to_run)),
      pool(config.threads),
      loaded(std::chrono::steady_clock::now(), std::move(model),
             {.max_tokens = std::max(ExecutorOptions().max_tokens, config.max_batch_size + 1),
              .max_context = config.max_model_len,
              .max_logit_rows = std::max(kLogitRows, config.max_batch_size),
              .isa = isa,
              .backend = parse_backend(config.backend)},
             pool, TokenizerUse::kSoon),
      requests(loaded, config) {}

LLMEngine::LLMEngine(std::unique_ptr<State> state) : state_(std::move(state)) {}
LLMEngine::~LLMEngine() = default;
LLMEngine::LLMEngine(LLMEngine&&) noexcept = default;
LLMEngine& LLMEngine::operator=(LLMEngine&&) noexcept = default;

LLMEngine LLMEngine::from_model(Model model, const fs::path& model_dir, QuantMode mode,
                                const QuantPolicy& policy, const BuildConfig& config) {
  check_threads(config);
  const cpu::Isa isa = resolve_isa(config.isa);
  if (model.engine() != nullptr) {
    const EngineManifest& manifest = model.engine()->manifest();
    check_engine_agrees(manifest.mode, manifest.scheme, mode, policy, model_dir.string());
  } else if (mode == QuantMode::NONE) {
    scheme_of(mode, policy, config.group_size, config.symmetric, config.two_level);
  } else {
    const BuildPlan plan = plan_of(model_dir, mode, policy, config);
    fs::path built;
    {
      ThreadPool pool(config.threads);
      built = build_or_reuse(model, plan, isa, pool).engine_dir;
    }
    return LLMEngine(
        std::make_unique<State>(config, built, Model::open(built, Verification::kLater), isa));
  }
  return LLMEngine(std::make_unique<State>(config, model_dir, std::move(model), isa));
}

LLMEngine LLMEngine::from_pretrained(const fs::path& model_dir, QuantMode mode,
                                     const QuantPolicy& policy, const BuildConfig& config) {
  check_threads(config);
  return from_model(Model::open(model_dir, Verification::kLater), model_dir, mode, policy, config);
}

LLMEngine LLMEngine::from_state_dict(const StateDict& model, QuantMode mode,
                                     const QuantPolicy& policy, const BuildConfig& config) {
  return from_model(Model::from_checkpoint(checkpoint_of(model), "the state dict"), "", mode,
                    policy, config);
}

uint64_t LLMEngine::submit(std::span<const int32_t> prompt, const SamplingParams& params,
                           std::function<void(RequestUpdate)> on_update) {
  return state_->requests.submit({prompt.begin(), prompt.end()}, params, std::move(on_update));
}

void LLMEngine::cancel(uint64_t request) { state_->requests.cancel(request); }

std::vector<RequestOutput> LLMEngine::generate(std::span<const std::string> prompts,
                                               const SamplingParams& params) {
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& prompt : prompts) ids.push_back(encode(prompt));
  std::vector<RequestOutput> outputs = state_->requests.answer(std::move(ids), params, {});
  for (size_t i = 0; i < prompts.size(); ++i) outputs[i].prompt = prompts[i];
  return outputs;
}

RequestOutput LLMEngine::generate(std::string_view prompt, const SamplingParams& params) {
  const std::string text(prompt);
  return std::move(generate(std::span(&text, 1), params)[0]);
}

RequestOutput LLMEngine::generate(std::span<const int32_t> prompt, const SamplingParams& params,
                                  const StreamCallbacks& callbacks) {
  return std::move(state_->requests.answer({{prompt.begin(), prompt.end()}}, params, callbacks)[0]);
}

RequestOutput LLMEngine::chat(std::span<const ChatMessage> messages, const SamplingParams& params) {
  const std::vector<int32_t> ids = chat_prompt(messages);
  RequestOutput output = generate(ids, params, {});
  output.prompt = decode(ids, /*skip_special_tokens=*/false);
  return output;
}

std::vector<int32_t> LLMEngine::encode(std::string_view text, bool add_special_tokens) const {
  return state_->loaded.model.tokenizer().encode(text, {.add_special_tokens = add_special_tokens});
}

std::string LLMEngine::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  return state_->loaded.model.tokenizer().decode(ids, skip_special_tokens);
}

std::string LLMEngine::token(int32_t id) const {
  return std::string(state_->loaded.model.tokenizer().token(id));
}

std::vector<int32_t> LLMEngine::chat_prompt(std::span<const ChatMessage> messages) const {
  std::vector<ConversationMessage> conversation;
  for (const ChatMessage& message : messages)
    conversation.push_back({message.role, message.content});
  return chat_prompt_ids(state_->loaded.model, conversation);
}

EngineInfo LLMEngine::info() const {
  const Executor& executor = *state_->loaded.executor;
  const Model& model = state_->loaded.model;
  return {.description = model.description(),
          .isa = std::string(cpu::name(executor.options().isa)),
          .backend = std::string(name(executor.options().backend)),
          .threads = state_->pool.size(),
          .max_model_len = executor.options().max_context,
          .parameters = model.parameters(),
          .weight_bytes = executor.weight_bytes(),
          .bits_per_weight = model.bits_per_weight(),
          .load_s = state_->loaded.load_s};
}

PretrainedConfig LLMEngine::config() const { return public_config(state_->loaded.model.config()); }
const fs::path& LLMEngine::path() const { return state_->path; }

}  // namespace whit
