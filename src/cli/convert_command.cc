// whit convert IN OUT_DIR: a model as a Hugging Face directory, dequantized or as a quantized
// checkpoint.
#include "cli/command.h"
#include "cli/common.h"
#include "export/hf_directory.h"

namespace whit::cli {
namespace {

struct ConvertOptions {
  std::string input, output, dtype = "auto", format = "dequantized";
};

int convert(const ConvertOptions& user) {
  std::optional<DType> dtype;
  if (user.dtype != "auto")
    dtype = user.dtype == "f32" ? DType::kF32 : user.dtype == "bf16" ? DType::kBF16 : DType::kF16;
  export_hf_directory(Model::open(user.input), user.output, export_format(user.format), dtype);
  fmt::print("{}\n", user.output);
  return 0;
}

}  // namespace

Action add_convert(CLI::App& app) {
  auto user = std::make_shared<ConvertOptions>();
  app.add_option(
         "IN", user->input,
         "Hugging Face directory (also one quantized by another tool), .gguf file or engine "
         "directory")
      ->required();
  app.add_option("OUT_DIR", user->output, "The directory to write; it appears when it is whole")
      ->required();
  std::vector<std::string> formats;
  std::string summaries;
  for (const ExportFormat& format : export_formats()) {
    formats.emplace_back(format.name);
    summaries += fmt::format("  {:20}{}\n", format.name, format.summary);
  }
  app.add_option("--format", user->format, "Of the weights (below)")
      ->check(CLI::IsMember(formats))
      ->capture_default_str();
  app.add_option("--dtype", user->dtype,
                 "Of what is not quantized: f32 (exact), bf16, f16, or auto: f32, and f16 beside "
                 "quantized weights")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}))
      ->capture_default_str();
  app.footer("\nFormats:\n" + summaries + R"(
Quantized GGUF weights are dequantized exactly to f32; tokenizer and chat template are rebuilt.
What AWQ or SmoothQuant did to the model is in the weights: other programs need not know of it.

Examples:
  whit convert SmolLM2-135M-Instruct.gguf SmolLM2-135M-Instruct
  whit convert engines/smol-w4a16 smol-awq --format awq)");
  return [user] { return convert(*user); };
}

}  // namespace whit::cli
