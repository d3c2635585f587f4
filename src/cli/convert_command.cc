// whit convert IN OUT_DIR: a checkpoint as a Hugging Face directory.
#include "cli/command.h"
#include "cli/common.h"

namespace whit::cli {
namespace {

struct ConvertOptions {
  std::string input, output, dtype = "f32";
};

int convert(const ConvertOptions& user) {
  if (EngineDirectory::is_engine(user.input))
    throw Error(
        ErrorKind::kUnsupported,
        "{} is an engine; convert the Hugging Face directory or GGUF file that it was made from",
        user.input);
  const DType dtype = user.dtype == "f32"    ? DType::kF32
                      : user.dtype == "bf16" ? DType::kBF16
                                             : DType::kF16;
  const Model model = Model::open(user.input);
  write_hf_directory(*model.checkpoint(), user.output, dtype);
  fmt::print("{}\n", user.output);
  return 0;
}

}  // namespace

Action add_convert(CLI::App& app) {
  auto user = std::make_shared<ConvertOptions>();
  app.add_option("IN", user->input, "Hugging Face directory or .gguf file")->required();
  app.add_option("OUT_DIR", user->output, "The directory to write; it appears when it is whole")
      ->required();
  app.add_option("--dtype", user->dtype, "Of the weights: f32 (exact), bf16 or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  app.footer(R"(
Quantized GGUF weights are dequantized exactly to f32; tokenizer and chat template are rebuilt.

Example:
  whit convert SmolLM2-135M-Instruct.gguf SmolLM2-135M-Instruct)");
  return [user] { return convert(*user); };
}

}  // namespace whit::cli
