// whit_make_variant jitter|outliers MODEL OUT: a function-preserving variant of a model that is
// harder to quantize, for measurements (docs/ablation.md).
// whit_make_variant llama-8b|llama-1.1b LAYERS OUT: a model of that shape, with random weights.
#include <cstdlib>
#include <cstring>
#include <exception>

#include "jitter_model.h"
#include "outlier_model.h"
#include "shape_model.h"

int main(int argc, char** argv) {
  const auto is = [&](const char* what) { return argc == 4 && std::strcmp(argv[1], what) == 0; };
  if (!is("jitter") && !is("outliers") && !is("llama-8b") && !is("llama-1.1b")) {
    fmt::print(stderr,
               "usage: whit_make_variant jitter|outliers MODEL OUT\n"
               "       whit_make_variant llama-8b|llama-1.1b LAYERS OUT\n");
    return 2;
  }
  try {
    if (is("jitter"))
      whit::testing::write_jitter_variant(argv[2], argv[3], 5000);
    else if (is("llama-8b") || is("llama-1.1b")) {
      whit::testing::LlamaShape shape =
          is("llama-8b") ? whit::testing::kLlama8B : whit::testing::kLlama1100M;
      shape.layers = std::max(1, std::atoi(argv[2]));
      whit::testing::write_llama_shape(shape, argv[3]);
    } else
      whit::testing::write_outlier_variant(argv[2], argv[3], 50, 6);
  } catch (const std::exception& error) {
    fmt::print(stderr, "whit_make_variant: {}\n", error.what());
    return 1;
  }
  return 0;
}
