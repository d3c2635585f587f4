#include "api/cache.h"

#include <cstdlib>

#include "base/error.h"

namespace whit {
namespace fs = std::filesystem;

fs::path cache_root() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && fs::path(cache).is_absolute()) return fs::path(cache) / "whit";
  const char* home = std::getenv("HOME");
  if (home != nullptr && fs::path(home).is_absolute()) return fs::path(home) / ".cache" / "whit";
  throw Error(ErrorKind::kInvalidArgument,
              "there is no place for the engine: neither XDG_CACHE_HOME nor HOME names a "
              "directory; give an output "
              "directory");
}

}  // namespace whit
