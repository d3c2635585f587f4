// Checkpoints whose linears another tool has quantized: AutoAWQ's "gemm" layout, GPTQ's (v1 and v2)
// and compressed-tensors' "pack-quantized", "int-quantized" and "float-quantized".
//
// Codes and zero points are re-packed as they are into the layouts of quant/weight.h, nothing is
// rounded: a scale that f16 cannot hold is an error. Sources: the packing code of AutoAWQ 0.2.9,
// GPTQModel 7.3 and compressed-tensors 0.18. What compressed-tensors says about the types of keys
// and values is not read: --kv-cache-dtype decides.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "quant/scheme.h"
#include "quant/weight.h"

namespace whit {

struct PrequantizedLinear {
  QuantScheme scheme;
  QuantizedTensor weight;
  float static_scale = 0;  // > 0: of per-tensor static activations
};

class Prequantized {
 public:
  // By config.json's "quantization_config"; nothing where there is none. Throws kUnsupported naming
  // the key for what has no kernels here.
  static std::optional<Prequantized> from_config(const Json& config, const std::string& where);

  std::string_view method() const;  // "awq", "gptq" or "compressed-tensors"
  // False where the checkpoint keeps the module's weight in floating point.
  bool holds(const Checkpoint& checkpoint, const std::string& module) const;
  // The module's weight [n, k]. Throws kInvalidData or kUnsupported naming the tensor.
  PrequantizedLinear read(const Checkpoint& checkpoint, const std::string& module, int64_t n,
                          int64_t k) const;

  // One of "config_groups", or all there is to say where the method has no groups.
  struct Group {
    QuantScheme scheme;
    bool packed = true;  // several codes a word
  };

 private:
  struct Method;
  static const Method kMethods[3];

  const Method* method_ = nullptr;
  std::vector<Group> groups_;
  bool zeros_less_one_ = false;  // GPTQ v1 stores zero − 1
};

}  // namespace whit
