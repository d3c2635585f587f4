// libFuzzer target: a safetensors file of arbitrary bytes is either refused with an Error or safe
// to read.
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "checkpoint/dequantize.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const whit::SafetensorsFile file({data, size}, "fuzz");
    for (const whit::StoredTensor& tensor : file.tensors()) {
      if (!whit::is_readable_as_f32(tensor.type)) continue;
      std::vector<float> values(whit::element_count(tensor.shape));
      whit::dequantize(tensor.type, tensor.data.data(), tensor.rows() * tensor.row_size(),
                       values.data());
    }
  } catch (const whit::Error&) {
  }
  return 0;
}
