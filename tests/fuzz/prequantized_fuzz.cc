// libFuzzer target: a quantized checkpoint of arbitrary bytes, its config first, then a zero byte
// and a safetensors file, is either refused with an Error or safe to read.
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/contents.h"
#include "checkpoint/prequantized.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  if (end == text.npos) return 0;
  try {
    const whit::Json config = whit::parse_json(std::string(text.substr(0, end)), "fuzz");
    if (!config.is_object()) return 0;
    const auto prequantized = whit::Prequantized::from_config(config, "fuzz");
    if (!prequantized) return 0;
    const whit::SafetensorsFile file({data + end + 1, size - end - 1}, "fuzz");
    whit::CheckpointContents contents;
    contents.config = config;
    contents.description = "fuzz";
    contents.tensors = file.tensors();
    const whit::Checkpoint checkpoint(std::move(contents));
    for (const std::string& name : checkpoint.names()) {
      const std::string module = name.substr(0, name.rfind('.'));
      for (const auto& [n, k] : {std::pair{8, 32}, {16, 64}, {5, 33}}) try {
          if (!prequantized->holds(checkpoint, module)) continue;
          const whit::PrequantizedLinear linear = prequantized->read(checkpoint, module, n, k);
          std::vector<float> values(n * k);
          whit::dequantize_rows(linear.weight.view(), 0, n, values.data());
        } catch (const whit::Error&) {
        }
    }
  } catch (const whit::Error&) {
  }
  return 0;
}
