// Any model as a Hugging Face directory, an engine included: its weights are dequantized, with the
// factors that AWQ or SmoothQuant folded into them, so that other programs compute what the engine
// computes but for the rounding of activations.
#pragma once

#include <filesystem>

#include "engine/model.h"

namespace whit {

// dtype f32 (exact), f16 or bf16. One piece of a tensor is in memory at a time; the directory
// appears whole or not at all.
void export_hf_directory(const Model& model, const std::filesystem::path& out, DType dtype);

}  // namespace whit
