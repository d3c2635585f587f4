// include/whit/whit.h over whit::LLMEngine: every exception becomes a status and a message.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "api/policy.h"
#include "base/error.h"
#include "whit/llm_engine.h"
#include "whit/whit.h"

struct whit_engine {
  whit::LLMEngine engine;
};

struct whit_request {
  whit_engine* engine = nullptr;
  std::vector<int32_t> prompt;
  whit::SamplingParams params;
  std::atomic<bool> cancelled{false};
  whit::CompletionOutput output;
};

namespace {

using whit::Error;
using whit::ErrorKind;

// A thread's message; what cannot be stored is not worth a second failure.
thread_local std::string last_error;
void remember(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}

whit_status status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return WHIT_INVALID_ARGUMENT;
    case ErrorKind::kInvalidData:
      return WHIT_INVALID_DATA;
    case ErrorKind::kNotFound:
      return WHIT_NOT_FOUND;
    case ErrorKind::kUnsupported:
      return WHIT_UNSUPPORTED;
    case ErrorKind::kIo:
      return WHIT_IO;
    case ErrorKind::kInterrupted:
      return WHIT_INTERRUPTED;
    case ErrorKind::kResource:
      return WHIT_RESOURCE;
  }
  return WHIT_INTERNAL;
}

template <typename Body>
whit_status guarded(Body body) noexcept {
  try {
    body();
    return WHIT_OK;
  } catch (const Error& error) {
    remember(error.what());
    return status_of(error.kind());
  } catch (const std::bad_alloc&) {
    remember("there is not enough memory for this; choose a smaller model, context or batch");
    return WHIT_RESOURCE;
  } catch (const std::exception& error) {
    remember(error.what());
    return WHIT_INTERNAL;
  } catch (...) {
    remember("an exception of unknown type");
    return WHIT_INTERNAL;
  }
}

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) throw Error(ErrorKind::kInvalidArgument, "{} is NULL", what);
}

// The caller's struct, which may be of an older, shorter header, over our defaults.
template <typename Struct, typename Init>
Struct read_struct(const Struct* given, Init init, const char* what) {
  Struct result;
  init(&result);
  if (given == nullptr) return result;
  const size_t size = given->size;
  if (size < sizeof(size_t) || size > (size_t{1} << 16))
    throw Error(ErrorKind::kInvalidArgument, "{}.size is {}; set it and the defaults with {}_init",
                what, given->size, what);
  std::memcpy(&result, given, std::min(size, sizeof(Struct)));
  return result;
}

std::string text_or(const char* text, const char* fallback) {
  return text == nullptr ? fallback : text;
}

whit::QuantMode mode_of(const std::string& name) {
  using whit::QuantMode;
  std::string known;
  for (const QuantMode mode : whit::quant_modes()) {
    if (whit::mode_name(mode) == name) return mode;
    known += (known.empty() ? "" : ", ") + std::string(whit::mode_name(mode));
  }
  throw Error(ErrorKind::kInvalidArgument, "mode {} is not known; choose one of {}", name, known);
}

whit::SamplingParams sampling_params(const whit_sampling_params* given) {
  const auto c = read_struct(given, whit_sampling_params_init, "whit_sampling_params");
  whit::SamplingParams params{.max_tokens = c.max_tokens,
                              .temperature = c.temperature,
                              .top_k = c.top_k,
                              .top_p = c.top_p,
                              .min_p = c.min_p,
                              .repetition_penalty = c.repetition_penalty,
                              .presence_penalty = c.presence_penalty,
                              .frequency_penalty = c.frequency_penalty};
  if (c.has_seed != 0) params.seed = c.seed;
  params.ignore_eos = c.ignore_eos != 0;
  if (c.stop_count > 0) require(static_cast<const void*>(c.stop), "stop");
  if (c.stop_count > 1024)
    throw Error(ErrorKind::kInvalidArgument, "stop_count is {}, at most 1024 texts are taken",
                c.stop_count);
  for (size_t i = 0; i < c.stop_count; ++i) {
    require(c.stop[i], "a stop text");
    params.stop.emplace_back(c.stop[i]);
  }
  return params;
}

template <typename MakePrompt>
whit_status create_request(whit_engine* engine, const char* text,
                           const whit_sampling_params* params, whit_request** request,
                           MakePrompt make_prompt) noexcept {
  if (request != nullptr) *request = nullptr;
  return guarded([&] {
    require(engine, "engine");
    require(text, "the text");
    require(static_cast<const void*>(request), "request");
    auto made = std::make_unique<whit_request>();
    made->engine = engine;
    made->params = sampling_params(params);
    made->prompt = make_prompt(engine->engine, text);
    *request = made.release();
  });
}

}  // namespace

uint32_t whit_abi_version(void) { return WHIT_ABI_VERSION; }
const char* whit_version(void) { return WHIT_VERSION; }
const char* whit_last_error(void) { return last_error.c_str(); }

void whit_engine_options_init(whit_engine_options* options) {
  if (options == nullptr) return;
  const whit::BuildConfig defaults;
  *options = {};
  options->size = sizeof(*options);
  options->calib_samples = defaults.calib_samples;
  options->calib_length = defaults.calib_length;
  options->group_size = defaults.group_size;
}

whit_status whit_engine_create(const char* model, const whit_engine_options* options,
                               whit_engine** engine) {
  if (engine != nullptr) *engine = nullptr;
  return guarded([&] {
    require(model, "model");
    require(static_cast<const void*>(engine), "engine");
    const auto c = read_struct(options, whit_engine_options_init, "whit_engine_options");
    whit::BuildConfig config;
    config.calib = text_or(c.calib, "self");
    config.calib_samples = c.calib_samples;
    config.calib_length = c.calib_length;
    config.group_size = c.group_size;
    config.engine_dir = text_or(c.engine_dir, "");
    config.threads = c.threads;
    config.max_model_len = c.max_model_len;
    config.isa = text_or(c.isa, "");
    config.backend = text_or(c.backend, "");
    *engine = new whit_engine{
        whit::LLMEngine::from_pretrained(model, mode_of(text_or(c.mode, "none")),
                                         {.weight_dtype = text_or(c.weight_dtype, ""),
                                          .activation_dtype = text_or(c.activation_dtype, "")},
                                         config)};
  });
}

void whit_engine_free(whit_engine* engine) { delete engine; }

void whit_sampling_params_init(whit_sampling_params* params) {
  if (params == nullptr) return;
  const whit::SamplingParams defaults;
  *params = {};
  params->size = sizeof(*params);
  params->max_tokens = defaults.max_tokens;
  params->temperature = defaults.temperature;
  params->top_p = defaults.top_p;
  params->repetition_penalty = defaults.repetition_penalty;
}

whit_status whit_request_create(whit_engine* engine, const char* prompt,
                                const whit_sampling_params* params, whit_request** request) {
  return create_request(
      engine, prompt, params, request,
      [](const whit::LLMEngine& llm, const char* text) { return llm.encode(text); });
}

whit_status whit_request_create_chat(whit_engine* engine, const char* message,
                                     const whit_sampling_params* params, whit_request** request) {
  return create_request(engine, message, params, request,
                        [](const whit::LLMEngine& llm, const char* text) {
                          const whit::ChatMessage turn{.role = "user", .content = text};
                          return llm.chat_prompt({&turn, 1});
                        });
}

whit_status whit_request_run(whit_request* request, whit_stream_callback callback,
                             void* user_data) {
  return guarded([&] {
    require(request, "request");
    whit::StreamCallbacks callbacks;
    if (callback != nullptr)
      callbacks.on_update = [&](const whit::StreamUpdate& update) {
        if (callback(update.text.data(), update.text.size(), update.token_ids.data(),
                     update.token_ids.size(), user_data) != 0)
          request->cancelled = true;
      };
    callbacks.cancelled = [&] { return request->cancelled.load(); };
    request->output = std::move(
        request->engine->engine.generate(request->prompt, request->params, callbacks).outputs[0]);
  });
}

void whit_request_cancel(whit_request* request) {
  if (request != nullptr) request->cancelled = true;
}

const char* whit_request_text(const whit_request* request) {
  return request == nullptr ? "" : request->output.text.c_str();
}

const int32_t* whit_request_tokens(const whit_request* request, size_t* count) {
  if (count != nullptr) *count = request == nullptr ? 0 : request->output.token_ids.size();
  return request == nullptr ? nullptr : request->output.token_ids.data();
}

const char* whit_request_finish_reason(const whit_request* request) {
  return request == nullptr ? "" : request->output.finish_reason.c_str();
}

void whit_request_free(whit_request* request) { delete request; }
