// What runs an engine fastest on this machine: measured by `whit bench ENGINE --tune`, kept in the
// user's cache, used by later runs that leave the choice open.
//
// The choices are the kernels' instruction set and the number of threads, of an engine as a whole.
// Not by the number of tokens of a step: kernels of two instruction sets sum in different orders,
// and a token's result must not depend on what else its step computes. Thread counts change no
// result; instruction sets change it within the kernels' tolerance, for all steps alike.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "api/loaded_model.h"
#include "base/json.h"

namespace whit {

struct TuningTrial {
  cpu::Isa isa;
  int threads;
  double prefill_tokens_per_s, decode_tokens_per_s;
  // Of a request of 256 tokens that is answered with 256: what is to be least.
  double request_s() const { return 256 / prefill_tokens_per_s + 256 / decode_tokens_per_s; }
};

struct Tuning {
  std::vector<TuningTrial> trials;
  size_t chosen = 0;
  const TuningTrial& choice() const { return trials[chosen]; }
};
Json to_json(const Tuning& tuning);

// The first trial, which is what runs without tuning, unless another is faster by more than
// measurements of one thing differ.
size_t choose(const std::vector<TuningTrial>& trials);

// Tries the instruction sets that this CPU has, then fewer threads while those are faster. Throws
// kInvalidArgument where `engine` is no engine directory. Loads the engine once a trial.
Tuning tune(const std::filesystem::path& engine);

// The file of this engine on this machine: named by the CPU's model, the CPUs that the process may
// use and the digest of the weights.
std::filesystem::path tuning_path(const std::filesystem::path& engine);
std::filesystem::path store_tuning(const std::filesystem::path& engine, const Tuning& tuning);
// Nothing for what is no engine and where nothing was stored. A file that is damaged or of another
// machine or engine is ignored too, but `warn` is told.
std::optional<Tuning> stored_tuning(const std::filesystem::path& engine,
                                    const std::function<void(const std::string&)>& warn);

}  // namespace whit
