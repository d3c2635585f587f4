// whit._native: LLMEngine and its plain data as Python sees them. The package's Python files give
// these their public names, defaults and documentation; nothing is decided here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "python/arrays.h"
#include "python/job.h"
#include "python/updates.h"
#include "whit/llm_engine.h"
#include "whit/quantize.h"

namespace whit::python {
namespace {

using Ids = std::vector<int32_t>;

std::string_view exception_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return "InvalidArgumentError";
    case ErrorKind::kInvalidData:
      return "InvalidDataError";
    case ErrorKind::kNotFound:
      return "NotFoundError";
    case ErrorKind::kUnsupported:
      return "UnsupportedError";
    case ErrorKind::kIo:
      return "IoError";
    case ErrorKind::kInterrupted:
      return "InterruptedError";
    case ErrorKind::kResource:
      return "ResourceError";
  }
  return "WhitError";
}

// Errors become the classes of whit/errors.py, with the message as it is.
void translate(const std::exception_ptr& exception, void*) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    try {
      const nb::object type =
          nb::module_::import_("whit.errors").attr(exception_name(error.kind()).data());
      const std::string_view message = error.what();
      // Messages quote file content, which need not be UTF-8.
      const nb::object text = nb::steal(
          PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
      PyErr_SetObject(type.ptr(), text.ptr());
    } catch (nb::python_error& failed) {
      failed.restore();
    }
  }
}

// Requests run together; every other call that takes long waits for the one before it.
class Engine {
 public:
  explicit Engine(LLMEngine engine) : engine_(std::move(engine)) {}

  // Calls work(engine) as a job.
  template <typename Work>
  auto run(nb::object on_progress, Work work) {
    const Job job(std::move(on_progress));
    check_user();
    const std::lock_guard lock(mutex_);
    const User user(user_);
    return work(engine_);
  }
  // For requests.
  LLMEngine& shared() {
    check_user();
    return engine_;
  }
  void cancel(uint64_t request) { engine_.cancel(request); }
  // What does not change needs no lock.
  const LLMEngine& constant() const { return engine_; }

 private:
  // A signal's handler, which Python may run while a call is at work, would wait for that call.
  void check_user() const {
    if (user_.load() == std::this_thread::get_id())
      throw Error(ErrorKind::kInvalidArgument,
                  "an engine cannot be called while it is at work for the same thread");
  }

  struct User {
    explicit User(std::atomic<std::thread::id>& id) : id_(id) { id_ = std::this_thread::get_id(); }
    ~User() { id_ = std::thread::id(); }
    std::atomic<std::thread::id>& id_;
  };

  LLMEngine engine_;
  std::mutex mutex_;
  std::atomic<std::thread::id> user_{std::thread::id()};
};

Engine* from_pretrained(const std::filesystem::path& model_dir, QuantMode mode,
                        const QuantPolicy& policy, const BuildConfig& config,
                        nb::object on_progress) {
  const Job job(std::move(on_progress));
  return new Engine(LLMEngine::from_pretrained(model_dir, mode, policy, config));
}

BuildReport build(const std::filesystem::path& model_dir, QuantMode mode, const QuantPolicy& policy,
                  const BuildConfig& config, nb::object on_progress) {
  const Job job(std::move(on_progress));
  return build_engine(model_dir, mode, policy, config);
}

// Name, values, and the dtype where the array cannot say it ("BF16" of an array of uint16).
using NamedTensor = std::tuple<std::string, AnyTensor, std::string>;

// The tensors are kept by the caller of this function for as long as the engine needs them.
Engine* from_state_dict(const std::vector<NamedTensor>& tensors, const std::string& config_json,
                        const std::string& tokenizer_json, const std::string& tokenizer_config_json,
                        const std::string& generation_config_json, QuantMode mode,
                        const QuantPolicy& policy, const BuildConfig& config,
                        nb::object on_progress) {
  StateDict model{.config_json = config_json,
                  .tokenizer_json = tokenizer_json,
                  .tokenizer_config_json = tokenizer_config_json,
                  .generation_config_json = generation_config_json};
  for (const auto& [name, tensor, dtype] : tensors) {
    model.tensors.push_back(tensor_view(name, tensor));
    if (!dtype.empty()) model.tensors.back().dtype = dtype;
  }
  const Job job(std::move(on_progress));
  return new Engine(LLMEngine::from_state_dict(model, mode, policy, config));
}

// Starts a request, of which `updates` gets the news under the caller's number. The result is for
// cancel().
uint64_t submit(Engine& engine, const Ids& prompt, const SamplingParams& params,
                uint64_t request_id, const UpdatesHandle& updates) {
  const nb::gil_scoped_release released;
  return engine.shared().submit(prompt, params,
                                [queue = updates.queue, request_id](RequestUpdate update) {
                                  queue->put(request_id, std::move(update));
                                });
}

std::vector<News> take_news(const UpdatesHandle& updates) {
  const nb::gil_scoped_release released;
  return updates.queue->take();
}

std::optional<FloatArray> array_or_none(Array& array) {
  if (array.shape.empty()) return std::nullopt;
  return to_numpy(std::move(array));
}

void bind_data(nb::module_& m) {
  nb::enum_<QuantMode>(m, "QuantMode", "The algorithm: which numbers a weight is rounded to.")
      .value("NONE", QuantMode::NONE, "as the checkpoint stores it")
      .value("RTN", QuantMode::RTN, "round to nearest")
      .value("AWQ", QuantMode::AWQ, "activation-aware scales and clipping (Lin et al., MLSys 2024)")
      .value("SMOOTHQUANT", QuantMode::SMOOTHQUANT,
             "migration of activation outliers into the weights (Xiao et al., ICML 2023)")
      .value("GPTQ", QuantMode::GPTQ,
             "each weight's rounding compensated by those after it (Frantar et al., ICLR 2023)")
      .value("AWQ_GPTQ", QuantMode::AWQ_GPTQ, "AWQ's scales, then GPTQ's rounding")
      .value("AUTO", QuantMode::AUTO, "closest to the original, slowest; held-out tokens decide");
  nb::class_<QuantPolicy>(m, "QuantPolicy")
      .def(nb::init<>())
      .def_rw("weight_dtype", &QuantPolicy::weight_dtype)
      .def_rw("activation_dtype", &QuantPolicy::activation_dtype);
  nb::class_<BuildConfig>(m, "BuildConfig")
      .def(nb::init<>())
      .def_rw("calib", &BuildConfig::calib)
      .def_rw("calib_samples", &BuildConfig::calib_samples)
      .def_rw("calib_length", &BuildConfig::calib_length)
      .def_rw("seed", &BuildConfig::seed)
      .def_rw("group_size", &BuildConfig::group_size)
      .def_rw("symmetric", &BuildConfig::symmetric)
      .def_rw("two_level", &BuildConfig::two_level)
      .def_rw("head", &BuildConfig::head)
      .def_rw("engine_dir", &BuildConfig::engine_dir)
      .def_rw("threads", &BuildConfig::threads)
      .def_rw("max_model_len", &BuildConfig::max_model_len)
      .def_rw("kv_cache_dtype", &BuildConfig::kv_cache_dtype)
      .def_rw("isa", &BuildConfig::isa)
      .def_rw("backend", &BuildConfig::backend)
      .def_rw("max_batch_size", &BuildConfig::max_batch_size)
      .def_rw("prefix_caching", &BuildConfig::prefix_caching);
  nb::class_<BuildReport>(m, "BuildReport")
      .def_ro("engine_dir", &BuildReport::engine_dir)
      .def_ro("reused", &BuildReport::reused)
      .def_ro("engine_bytes", &BuildReport::engine_bytes)
      .def_ro("bits_per_weight", &BuildReport::bits_per_weight)
      .def_ro("warnings", &BuildReport::warnings);
  nb::class_<SamplingParams>(m, "SamplingParams")
      .def(nb::init<>())
      .def_rw("max_tokens", &SamplingParams::max_tokens)
      .def_rw("temperature", &SamplingParams::temperature)
      .def_rw("top_k", &SamplingParams::top_k)
      .def_rw("top_p", &SamplingParams::top_p)
      .def_rw("min_p", &SamplingParams::min_p)
      .def_rw("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_rw("presence_penalty", &SamplingParams::presence_penalty)
      .def_rw("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_rw("seed", &SamplingParams::seed, nb::arg("seed").none())
      .def_rw("stop", &SamplingParams::stop)
      .def_rw("ignore_eos", &SamplingParams::ignore_eos)
      .def_rw("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_rw("include_stop_str_in_output", &SamplingParams::include_stop_str_in_output)
      .def_rw("skip_special_tokens", &SamplingParams::skip_special_tokens)
      .def_rw("logit_bias", &SamplingParams::logit_bias)
      .def_rw("logprobs", &SamplingParams::logprobs)
      .def_rw("return_generation_logits", &SamplingParams::return_generation_logits)
      .def_rw("return_context_logits", &SamplingParams::return_context_logits)
      .def_rw("n", &SamplingParams::n);
  nb::class_<Logprob>(m, "Logprob")
      .def_ro("token_id", &Logprob::token_id)
      .def_ro("logprob", &Logprob::logprob);
  nb::class_<TokenLogprobs>(m, "TokenLogprobs")
      .def_ro("chosen", &TokenLogprobs::chosen)
      .def_ro("top", &TokenLogprobs::top);
  nb::class_<News>(m, "RequestUpdate", "One answer's news since its update before.")
      .def_ro("request_id", &News::request_id)
      .def_ro("index", &News::index)
      .def_ro("text", &News::text)
      .def_ro("token_ids", &News::token_ids)
      .def_ro("logprobs", &News::logprobs)
      .def(
          "take_generation_logits",
          [](News& news) { return array_or_none(news.generation_logits); },
          "The logits [tokens, V], or None; they are handed out once.")
      .def(
          "take_context_logits", [](News& news) { return array_or_none(news.context_logits); },
          "The prompt's logits [tokens, V], or None; they are handed out once.")
      .def_ro("batch_size", &News::batch_size)
      .def_ro("waiting", &News::waiting)
      .def_ro("finished", &News::finished)
      .def_ro("last", &News::last)
      .def_ro("finish_reason", &News::finish_reason)
      .def_ro("stop_reason", &News::stop_reason)
      .def_ro("reused_tokens", &News::reused_tokens)
      .def_ro("queue_s", &News::queue_s)
      .def_ro("prefill_s", &News::prefill_s)
      .def_ro("decode_s", &News::decode_s)
      .def(
          "raise_error",
          [](const News& news) {
            if (news.error) std::rethrow_exception(news.error);
          },
          "Raises what the answer failed with, if it did.");
  nb::class_<UpdatesHandle>(m, "Updates", "News of requests, from the engine's thread.")
      .def(nb::init<>())
      .def("take", &take_news, "Waits for news and takes them all; none: closed and empty.")
      .def("close", [](const UpdatesHandle& updates) { updates.queue->close(); });
  nb::class_<EngineInfo>(m, "EngineInfo")
      .def_ro("description", &EngineInfo::description)
      .def_ro("isa", &EngineInfo::isa)
      .def_ro("backend", &EngineInfo::backend)
      .def_ro("threads", &EngineInfo::threads)
      .def_ro("max_model_len", &EngineInfo::max_model_len)
      .def_ro("parameters", &EngineInfo::parameters)
      .def_ro("weight_bytes", &EngineInfo::weight_bytes)
      .def_ro("bits_per_weight", &EngineInfo::bits_per_weight)
      .def_ro("load_s", &EngineInfo::load_s);
  nb::class_<PretrainedConfig>(m, "PretrainedConfig")
      .def_static("from_json_file", &PretrainedConfig::from_json_file, nb::arg("path"))
      .def_ro("architecture", &PretrainedConfig::architecture)
      .def_ro("model_type", &PretrainedConfig::model_type)
      .def_ro("hidden_size", &PretrainedConfig::hidden_size)
      .def_ro("intermediate_size", &PretrainedConfig::intermediate_size)
      .def_ro("num_hidden_layers", &PretrainedConfig::num_hidden_layers)
      .def_ro("num_attention_heads", &PretrainedConfig::num_attention_heads)
      .def_ro("num_key_value_heads", &PretrainedConfig::num_key_value_heads)
      .def_ro("head_dim", &PretrainedConfig::head_dim)
      .def_ro("vocab_size", &PretrainedConfig::vocab_size)
      .def_ro("max_position_embeddings", &PretrainedConfig::max_position_embeddings)
      .def_ro("rms_norm_eps", &PretrainedConfig::rms_norm_eps)
      .def_ro("rope_theta", &PretrainedConfig::rope_theta)
      .def_ro("tie_word_embeddings", &PretrainedConfig::tie_word_embeddings)
      .def_ro("torch_dtype", &PretrainedConfig::torch_dtype);
}

void bind_engine(nb::module_& m) {
  nb::class_<Engine>(m, "Engine")
      .def_static("from_pretrained", &from_pretrained, nb::arg("model_dir"), nb::arg("mode"),
                  nb::arg("policy"), nb::arg("config"), nb::arg("on_progress").none())
      .def_static("from_state_dict", &from_state_dict, nb::arg("tensors"), nb::arg("config_json"),
                  nb::arg("tokenizer_json"), nb::arg("tokenizer_config_json"),
                  nb::arg("generation_config_json"), nb::arg("mode"), nb::arg("policy"),
                  nb::arg("config"), nb::arg("on_progress").none())
      .def("submit", &submit, nb::arg("prompt"), nb::arg("params"), nb::arg("request_id"),
           nb::arg("updates"))
      .def(
          "cancel", [](Engine& engine, uint64_t request) { engine.cancel(request); },
          nb::arg("request"))
      .def(
          "logits",
          [](Engine& engine, const Ids& prompt) {
            return to_numpy(
                engine.run(nb::none(), [&](LLMEngine& llm) { return llm.logits(prompt); }));
          },
          nb::arg("prompt"))
      .def(
          "taps",
          [](Engine& engine, const Ids& prompt, const std::vector<std::string>& names) {
            auto found =
                engine.run(nb::none(), [&](LLMEngine& llm) { return llm.taps(prompt, names); });
            nb::dict result;
            for (const std::string& name : names)
              if (const auto each = found.find(name); each != found.end() && !result.contains(name))
                result[name.c_str()] = to_numpy(std::move(each->second));
            return result;
          },
          nb::arg("prompt"), nb::arg("names"))
      .def("tap_names", [](const Engine& engine) { return engine.constant().tap_names(); })
      .def("weight_names", [](const Engine& engine) { return engine.constant().weight_names(); })
      .def(
          "weight",
          [](Engine& engine, const std::string& module) {
            return to_numpy(
                engine.run(nb::none(), [&](LLMEngine& llm) { return llm.weight(module); }));
          },
          nb::arg("module"))
      .def(
          "save",
          [](Engine& engine, const std::filesystem::path& directory) {
            engine.run(nb::none(), [&](LLMEngine& llm) { llm.save(directory); });
          },
          nb::arg("directory"))
      .def(
          "export_hf",
          [](Engine& engine, const std::filesystem::path& directory, const std::string& dtype,
             const std::string& format) {
            engine.run(nb::none(),
                       [&](LLMEngine& llm) { llm.export_hf(directory, dtype, format); });
          },
          nb::arg("directory"), nb::arg("dtype"), nb::arg("format"))
      .def(
          "encode",
          [](const Engine& engine, const std::string& text, bool add_special_tokens) {
            const nb::gil_scoped_release released;
            return engine.constant().encode(text, add_special_tokens);
          },
          nb::arg("text"), nb::arg("add_special_tokens"))
      .def(
          "decode",
          [](const Engine& engine, const Ids& ids, bool skip_special_tokens) {
            return engine.constant().decode(ids, skip_special_tokens);
          },
          nb::arg("ids"), nb::arg("skip_special_tokens"))
      .def(
          "token", [](const Engine& engine, int32_t id) { return engine.constant().token(id); },
          nb::arg("id"))
      .def(
          "chat_prompt",
          [](const Engine& engine, const std::vector<std::pair<std::string, std::string>>& turns) {
            std::vector<ChatMessage> messages;
            for (const auto& [role, content] : turns) messages.push_back({role, content});
            const nb::gil_scoped_release released;
            return engine.constant().chat_prompt(messages);
          },
          nb::arg("messages"))
      .def_prop_ro("info", [](const Engine& engine) { return engine.constant().info(); })
      .def_prop_ro("config", [](const Engine& engine) { return engine.constant().config(); })
      .def_prop_ro("path", [](const Engine& engine) { return engine.constant().path(); });
  m.def("build_engine", &build, nb::arg("model_dir"), nb::arg("mode"), nb::arg("policy"),
        nb::arg("config"), nb::arg("on_progress").none());
}

}  // namespace
}  // namespace whit::python

NB_MODULE(_native, m) {
  // An engine in a global variable is still there when the interpreter ends: no leak.
  nanobind::set_leak_warnings(false);
  nanobind::register_exception_translator(whit::python::translate);
  m.attr("version") = WHIT_VERSION;
  whit::python::bind_data(m);
  whit::python::bind_engine(m);
}
