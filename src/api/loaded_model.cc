#include "api/loaded_model.h"

namespace whit {

LoadedModel::LoadedModel(std::chrono::steady_clock::time_point begin, Model model_to_run,
                         const ExecutorOptions& options, ThreadPool& pool, TokenizerUse tokenizer)
    : start(begin), model(std::move(model_to_run)) {
  if (options.max_context > model.config().max_position_embeddings)
    throw Error(ErrorKind::kInvalidArgument,
                "a context of {} tokens was asked for, but {} was trained for {}",
                options.max_context, model.description(), model.config().max_position_embeddings);
  // Where the system gives no more threads, whoever waits for the result computes it.
  constexpr auto kBeside = std::launch::async | std::launch::deferred;
  const std::shared_future<void> verified = std::async(kBeside, [shared = model] {
    if (shared.engine() != nullptr) shared.engine()->verify_weights();
  });
  // After it, as loading ends with the verification and not with the tokenizer.
  if (tokenizer == TokenizerUse::kSoon)
    tokenizer_made = std::async(kBeside, [shared = model, verified] {
      verified.wait();
      shared.tokenizer();
    });
  try {
    executor =
        std::make_unique<Executor>(model.config(), model.graph(), model.weights(), options, pool);
  } catch (...) {
    verified.get();  // damage explains whatever else was found
    throw;
  }
  verified.get();
  load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

KvFormat LoadedModel::kv_format(std::string_view dtype) const {
  KvFormat format = model.kv_format(dtype);
  const ExecutorOptions& options = executor->options();
  const bool quantized = model.engine() != nullptr || model.prequantized() != nullptr;
  if (dtype == "auto" && quantized && format.type == KvType::kF16 &&
      options.backend == Backend::kCpu && options.isa == cpu::Isa::kAmx)
    format.type = KvType::kBF16;
  return format;
}

cpu::Isa resolve_isa(std::string_view name) {
  const cpu::Isa best = cpu::detected_isa();
  if (name.empty() || name == "auto") return best;
  const cpu::Isa isa = cpu::parse_isa(name);
  if (isa > best)
    throw Error(ErrorKind::kUnsupported, "this CPU does not have {}; the best it has is {}",
                cpu::name(isa), cpu::name(best));
  return isa;
}

}  // namespace whit
