// A model as a Hugging Face directory that other programs load: with dequantized weights, or as a
// quantized checkpoint in a format of theirs.
//
// What AWQ or SmoothQuant folded into the weights is in them already. A dequantized engine computes
// what the engine computes but for the rounding of activations; a quantized one has the engine's
// own codes.
#pragma once

#include <filesystem>
#include <optional>
#include <span>

#include "engine/model.h"

namespace whit {

struct ExportFormat {
  std::string_view name, summary;
  std::span<const DType> dtypes;  // of what is not quantized; the default first
  // Throws kUnsupported naming a linear where the format cannot express its weight.
  HfContents (*contents)(const Model& model);
};

std::span<const ExportFormat> export_formats();
const ExportFormat& export_format(std::string_view name);  // kInvalidArgument with the names

// One piece of a tensor is in memory at a time; the directory appears whole or not at all.
void export_hf_directory(const Model& model, const std::filesystem::path& out,
                         const ExportFormat& format, std::optional<DType> dtype = {});

}  // namespace whit
