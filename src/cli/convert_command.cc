// whit convert IN OUT_DIR: a model as a Hugging Face directory.
#include "api/hf_export.h"
#include "cli/command.h"
#include "cli/common.h"

namespace whit::cli {
namespace {

struct ConvertOptions {
  std::string input, output, dtype = "f32";
};

int convert(const ConvertOptions& user) {
  const DType dtype = user.dtype == "f32"    ? DType::kF32
                      : user.dtype == "bf16" ? DType::kBF16
                                             : DType::kF16;
  export_hf_directory(Model::open(user.input), user.output, dtype);
  fmt::print("{}\n", user.output);
  return 0;
}

}  // namespace

Action add_convert(CLI::App& app) {
  auto user = std::make_shared<ConvertOptions>();
  app.add_option("IN", user->input, "Hugging Face directory, .gguf file or engine directory")
      ->required();
  app.add_option("OUT_DIR", user->output, "The directory to write; it appears when it is whole")
      ->required();
  app.add_option("--dtype", user->dtype, "Of the weights: f32 (exact), bf16 or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  app.footer(R"(
Quantized GGUF weights are dequantized exactly to f32; tokenizer and chat template are rebuilt.
An engine's weights are dequantized too, for programs that do not know engines.

Example:
  whit convert SmolLM2-135M-Instruct.gguf SmolLM2-135M-Instruct)");
  return [user] { return convert(*user); };
}

}  // namespace whit::cli
