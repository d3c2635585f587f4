#include "api/loaded_model.h"

namespace whit {

LoadedModel::LoadedModel(std::chrono::steady_clock::time_point begin, Model model_to_run,
                         const ExecutorOptions& options, ThreadPool& pool)
    : start(begin), model(std::move(model_to_run)) {
  if (options.max_context > model.config().max_position_embeddings)
    throw Error(ErrorKind::kInvalidArgument,
                "a context of {} tokens was asked for, but {} was trained for {}",
                options.max_context, model.description(), model.config().max_position_embeddings);
  executor =
      std::make_unique<Executor>(model.config(), model.graph(), model.weights(), options, pool);
  load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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
