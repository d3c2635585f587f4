// Where the program keeps what it can make again.
#pragma once

#include <filesystem>

namespace whit {

// ${XDG_CACHE_HOME:-~/.cache}/whit. Throws kInvalidArgument where neither names a directory.
std::filesystem::path cache_root();

}  // namespace whit
