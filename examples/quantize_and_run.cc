// Quantizes a model with AWQ (int4 weights × int8 activations) and with SmoothQuant (int8 × int8),
// and lets both answer.
//
//   example_quantize_and_run MODEL_DIR [PROMPT]
//
// The first run calibrates and builds; engines are cached, so that later runs start at once.
#include <cstdio>
#include <exception>

#include "whit/llm_engine.h"

namespace {

void answer(const char* name, whit::LLMEngine engine, const std::string& question) {
  const whit::ChatMessage messages[] = {{.role = "user", .content = question}};
  const whit::RequestOutput request = engine.chat(messages, {.max_tokens = 64, .temperature = 0});
  const whit::CompletionOutput& output = request.outputs[0];
  std::printf("\n== %s (%s)\n%s\n[%zu tokens, finished by %s]\n", name,
              engine.path().string().c_str(), output.text.c_str(), output.token_ids.size(),
              output.finish_reason.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL_DIR [PROMPT]\n", argv[0]);
    return 2;
  }
  const std::filesystem::path model_dir = argv[1];
  const std::string question = argc > 2 ? argv[2] : "Why is the sky blue?";
  try {
    answer("AWQ, int4 weights, int8 activations",
           whit::LLMEngine::from_pretrained(
               model_dir, whit::QuantMode::AWQ,
               whit::QuantPolicy{.weight_dtype = "int4", .activation_dtype = "int8"},
               whit::BuildConfig{.calib_samples = 32, .group_size = 128}),
           question);
    answer("SmoothQuant, int8 weights, int8 activations",
           whit::LLMEngine::from_pretrained(
               model_dir, whit::QuantMode::SMOOTHQUANT,
               whit::QuantPolicy{.weight_dtype = "int8", .activation_dtype = "int8"},
               whit::BuildConfig{.calib_samples = 32}),
           question);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
