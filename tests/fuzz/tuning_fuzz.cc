// libFuzzer target: a choice that whit bench --tune stored, and the manifest by which it is found.
// Two parts with a zero byte between them: JSON merge patches of both. The choice is one that this
// machine can run, or there is none.
#include <cstdlib>

#include "api/tuning.h"
#include "fuzz/support.h"

namespace {

using namespace whit;

const std::filesystem::path& folder() {
  static const fuzz::Directory scratch;
  return scratch.path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool cache = ::setenv("XDG_CACHE_HOME", folder().c_str(), 1) == 0;
  const auto parts = fuzz::parts(data, size, 2);
  const Json manifest = {{"files", {{"weights.safetensors", {{"xxh3_128", "aa"}}}}}};
  write_file(folder() / "engine.json", manifest.dump());
  try {
    const Tuning trials = {.trials = {{cpu::detected_isa(), available_cpus(), 1000, 100},
                                      {cpu::Isa::kPortable, 1, 2000, 200}},
                           .chosen = 1};
    const std::filesystem::path path = store_tuning(folder(), trials);
    // Text that is no JSON stands for itself.
    const auto changed = fuzz::patched(Json::parse(read_file(path)), parts[0]);
    write_file(path, changed ? changed->dump() : std::string(parts[0]));
    if (const auto engine = fuzz::patched(manifest, parts[1]))
      write_file(folder() / "engine.json", engine->dump());
    const auto stored = stored_tuning(folder(), [](const std::string&) {});
    if (cache && stored &&
        (stored->chosen >= stored->trials.size() || stored->choice().threads < 1 ||
         stored->choice().threads > available_cpus() || stored->choice().isa > cpu::detected_isa()))
      std::abort();
  } catch (const Error&) {
  }
  return 0;
}
