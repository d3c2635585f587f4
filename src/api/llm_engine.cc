// The public headers' implementation: settings in, engine ready, requests answered.
#include "whit/llm_engine.h"

#include <random>

#include "api/build.h"
#include "api/loaded_model.h"
#include "api/policy.h"
#include "runtime/chat.h"
#include "runtime/generator.h"
#include "whit/quantize.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

BuildPlan plan_of(const fs::path& model_dir, QuantMode mode, const QuantPolicy& policy,
                  const BuildConfig& config) {
  BuildPlan plan;
  plan.model_path = model_dir;
  plan.recipe = {.mode = std::string(mode_name(mode)),
                 .scheme = scheme_of(mode, policy, config.group_size, config.symmetric),
                 .head = config.head,
                 .output = config.engine_dir};
  plan.calibration = {.source = config.calib,
                      .samples = config.calib_samples,
                      .length = config.calib_length,
                      .seed = config.seed};
  return plan;
}

void check_threads(const BuildConfig& config) {
  if (config.threads < 0 || config.threads > 1024)
    throw Error(ErrorKind::kInvalidArgument,
                "BuildConfig::threads is {}, expected 0 (all CPUs) … 1024", config.threads);
  if (config.max_model_len < 0)
    throw Error(ErrorKind::kInvalidArgument,
                "BuildConfig::max_model_len is {}; 0 means the model's", config.max_model_len);
}

BuildReport build_or_reuse(const fs::path& model_dir, const BuildPlan& wanted, cpu::Isa isa,
                           ThreadPool& pool) {
  const Model model = Model::open(model_dir);
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

GenerationOptions generation_options(const SamplingParams& params) {
  GenerationOptions options;
  options.sampling.temperature = static_cast<float>(params.temperature);
  options.sampling.top_k = params.top_k;
  options.sampling.top_p = static_cast<float>(params.top_p);
  options.sampling.min_p = static_cast<float>(params.min_p);
  options.sampling.repetition_penalty = static_cast<float>(params.repetition_penalty);
  options.sampling.presence_penalty = static_cast<float>(params.presence_penalty);
  options.sampling.frequency_penalty = static_cast<float>(params.frequency_penalty);
  options.sampling.seed = params.seed
                              ? *params.seed
                              : (uint64_t{std::random_device()()} << 32 | std::random_device()());
  options.max_tokens = params.max_tokens;
  options.stop = params.stop;
  options.ignore_eos = params.ignore_eos;
  return options;
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
    throw Error(ErrorKind::kInvalidArgument,
                "QuantMode::NONE builds no engine; choose RTN, AWQ or SMOOTHQUANT");
  const BuildPlan plan = plan_of(model_dir, mode, policy, config);
  const cpu::Isa isa = resolve_isa(config.isa);
  ThreadPool pool(config.threads);
  return build_or_reuse(model_dir, plan, isa, pool);
}

struct LLMEngine::State {
  State(const BuildConfig& config, const fs::path& path_to_run, cpu::Isa isa)
      : path(path_to_run),
        pool(config.threads),
        loaded(path, {.max_context = config.max_model_len, .max_logit_rows = 1, .isa = isa}, pool),
        generator(*loaded.executor, loaded.model.tokenizer(), loaded.model.stop_ids(),
                  loaded.model.default_kv_dtype()) {}

  RequestOutput answer(std::string prompt, std::vector<int32_t> ids, const SamplingParams& params) {
    Generation result = generator.generate(ids, generation_options(params));
    return {.prompt = std::move(prompt),
            .prompt_token_ids = std::move(ids),
            .outputs = {{.text = std::move(result.text),
                         .token_ids = std::move(result.token_ids),
                         .finish_reason = std::string(name(result.finish_reason))}}};
  }

  fs::path path;
  ThreadPool pool;
  LoadedModel loaded;
  Generator generator;
};

LLMEngine::LLMEngine(std::unique_ptr<State> state) : state_(std::move(state)) {}
LLMEngine::~LLMEngine() = default;
LLMEngine::LLMEngine(LLMEngine&&) noexcept = default;
LLMEngine& LLMEngine::operator=(LLMEngine&&) noexcept = default;

LLMEngine LLMEngine::from_pretrained(const fs::path& model_dir, QuantMode mode,
                                     const QuantPolicy& policy, const BuildConfig& config) {
  check_threads(config);
  const cpu::Isa isa = resolve_isa(config.isa);
  if (EngineDirectory::is_engine(model_dir)) {
    const EngineManifest manifest = EngineDirectory(model_dir).manifest();
    check_engine_agrees(manifest.mode, manifest.scheme, mode, policy, model_dir.string());
    return LLMEngine(std::make_unique<State>(config, model_dir, isa));
  }
  if (mode == QuantMode::NONE) {
    scheme_of(mode, policy, config.group_size, config.symmetric);
    return LLMEngine(std::make_unique<State>(config, model_dir, isa));
  }
  const BuildPlan plan = plan_of(model_dir, mode, policy, config);
  fs::path built;
  {
    ThreadPool pool(config.threads);
    built = build_or_reuse(model_dir, plan, isa, pool).engine_dir;
  }
  return LLMEngine(std::make_unique<State>(config, built, isa));
}

std::vector<RequestOutput> LLMEngine::generate(std::span<const std::string> prompts,
                                               const SamplingParams& params) {
  std::vector<RequestOutput> outputs;
  for (const std::string& prompt : prompts) outputs.push_back(generate(prompt, params));
  return outputs;
}

RequestOutput LLMEngine::generate(std::string_view prompt, const SamplingParams& params) {
  return state_->answer(
      std::string(prompt),
      state_->loaded.model.tokenizer().encode(prompt, {.add_special_tokens = true}), params);
}

RequestOutput LLMEngine::chat(std::span<const ChatMessage> messages, const SamplingParams& params) {
  std::vector<ConversationMessage> conversation;
  for (const ChatMessage& message : messages)
    conversation.push_back({message.role, message.content});
  std::vector<int32_t> ids = chat_prompt_ids(state_->loaded.model, conversation);
  std::string prompt = state_->loaded.model.tokenizer().decode(ids, /*skip_special_tokens=*/false);
  return state_->answer(std::move(prompt), std::move(ids), params);
}

PretrainedConfig LLMEngine::config() const { return public_config(state_->loaded.model.config()); }
const fs::path& LLMEngine::path() const { return state_->path; }

}  // namespace whit
