// libFuzzer target: calibration files. The first byte chooses: JSONL, plain text, or what --calib
// says of sources. Tokens are the model's, or there is an Error.
#include <cstdlib>

#include "api/calibration_source.h"
#include "fuzz/support.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace whit;
  static const fuzz::Directory scratch;
  if (size < 1) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 4 == 0) {
      for (const CalibrationSource& source : parse_calibration_sources(text))
        if (source.source.empty() || !(source.weight > 0)) std::abort();
      return 0;
    }
    const std::string path = scratch.path / (data[0] % 4 == 1 ? "text" : "lines.jsonl");
    write_file(path, text);
    for (const int32_t id : read_calibration_tokens(fuzz::tiny_model(), path))
      if (id < 0 || id >= fuzz::tiny_model().config().vocab_size) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
