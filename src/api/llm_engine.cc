// The public headers' implementation: settings in, engine ready, requests answered.
#include "whit/llm_engine.h"

#include <random>

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
  options.sampling.logit_bias = params.logit_bias;
  options.sampling.logprobs = params.logprobs;
  options.max_tokens = params.max_tokens;
  options.stop = params.stop;
  options.stop_text = params.include_stop_str_in_output ? StopText::kKeep : StopText::kRemove;
  options.stop_token_ids = params.stop_token_ids;
  options.ignore_eos = params.ignore_eos;
  options.skip_special_tokens = params.skip_special_tokens;
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
             {.max_context = config.max_model_len,
              .max_logit_rows = kLogitRows,
              .isa = isa,
              .backend = parse_backend(config.backend)},
             pool),
      generator(*loaded.executor, loaded.model.tokenizer(), loaded.model.stop_ids(),
                loaded.model.kv_format(config.kv_cache_dtype)) {}

RequestOutput LLMEngine::State::answer(std::string prompt, std::vector<int32_t> ids,
                                       const SamplingParams& params,
                                       const StreamCallbacks& callbacks) {
  CompletionOutput output;
  std::vector<int32_t> pending;  // tokens since the last update
  std::string text;
  const auto update = [&] {
    if (callbacks.on_update && !(pending.empty() && text.empty()))
      callbacks.on_update({.text = text, .token_ids = pending});
    pending.clear();
    text.clear();
  };
  GenerationCallbacks hooks;
  hooks.on_token = [&](const SampledToken& sampled) {
    update();  // the text of the token before is complete
    pending.push_back(sampled.token);
    if (params.logprobs < 0) return;
    TokenLogprobs logprobs{.chosen = {sampled.token, sampled.logprob}};
    for (const TokenLogprob& each : sampled.top) logprobs.top.push_back({each.token, each.logprob});
    output.logprobs.push_back(std::move(logprobs));
  };
  hooks.on_text = [&](std::string_view piece) { text += piece; };
  hooks.cancelled = [&] {
    update();
    return callbacks.cancelled && callbacks.cancelled();
  };
  if (params.return_generation_logits)
    hooks.on_logits = [&](std::span<const float> logits) {
      auto& values = output.generation_logits.values;
      values.insert(values.end(), logits.begin(), logits.end());
    };
  Generation result = generator.generate(ids, generation_options(params), hooks);
  update();
  output.text = std::move(result.text);
  output.token_ids = std::move(result.token_ids);
  output.finish_reason = std::string(name(result.finish_reason));
  output.stop_reason = std::move(result.stop_text);
  if (params.return_generation_logits)
    output.generation_logits.shape = {static_cast<int64_t>(output.token_ids.size()),
                                      loaded.model.config().vocab_size};
  RequestOutput request{.prompt = std::move(prompt), .prompt_token_ids = std::move(ids)};
  request.outputs.push_back(std::move(output));
  request.reused_tokens = result.reused_tokens;
  request.prefill_s = result.prefill_s;
  request.decode_s = result.decode_s;
  return request;
}

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
    scheme_of(mode, policy, config.group_size, config.symmetric);
  } else {
    const BuildPlan plan = plan_of(model_dir, mode, policy, config);
    fs::path built;
    {
      ThreadPool pool(config.threads);
      built = build_or_reuse(model, plan, isa, pool).engine_dir;
    }
    return LLMEngine(std::make_unique<State>(config, built, Model::open(built), isa));
  }
  return LLMEngine(std::make_unique<State>(config, model_dir, std::move(model), isa));
}

LLMEngine LLMEngine::from_pretrained(const fs::path& model_dir, QuantMode mode,
                                     const QuantPolicy& policy, const BuildConfig& config) {
  check_threads(config);
  return from_model(Model::open(model_dir), model_dir, mode, policy, config);
}

LLMEngine LLMEngine::from_state_dict(const StateDict& model, QuantMode mode,
                                     const QuantPolicy& policy, const BuildConfig& config) {
  return from_model(Model::from_checkpoint(checkpoint_of(model), "the state dict"), "", mode,
                    policy, config);
}

std::vector<RequestOutput> LLMEngine::generate(std::span<const std::string> prompts,
                                               const SamplingParams& params) {
  std::vector<RequestOutput> outputs;
  for (const std::string& prompt : prompts) outputs.push_back(generate(prompt, params));
  return outputs;
}

RequestOutput LLMEngine::generate(std::string_view prompt, const SamplingParams& params) {
  return state_->answer(std::string(prompt), encode(prompt), params, {});
}

RequestOutput LLMEngine::generate(std::span<const int32_t> prompt, const SamplingParams& params,
                                  const StreamCallbacks& callbacks) {
  return state_->answer("", {prompt.begin(), prompt.end()}, params, callbacks);
}

RequestOutput LLMEngine::chat(std::span<const ChatMessage> messages, const SamplingParams& params) {
  std::vector<int32_t> ids = chat_prompt(messages);
  std::string prompt = decode(ids, /*skip_special_tokens=*/false);
  return state_->answer(std::move(prompt), std::move(ids), params, {});
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
