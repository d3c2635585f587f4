// whit_make_variant jitter|outliers MODEL OUT: a function-preserving variant of a model that is
// harder to quantize, for measurements (docs/ablation.md).
#include <cstring>
#include <exception>

#include "jitter_model.h"
#include "outlier_model.h"

int main(int argc, char** argv) {
  const bool jitter = argc == 4 && std::strcmp(argv[1], "jitter") == 0;
  if (!jitter && (argc != 4 || std::strcmp(argv[1], "outliers") != 0)) {
    fmt::print(stderr, "usage: whit_make_variant jitter|outliers MODEL OUT\n");
    return 2;
  }
  try {
    if (jitter)
      whit::testing::write_jitter_variant(argv[2], argv[3], 5000);
    else
      whit::testing::write_outlier_variant(argv[2], argv[3], 50, 6);
  } catch (const std::exception& error) {
    fmt::print(stderr, "whit_make_variant: {}\n", error.what());
    return 1;
  }
  return 0;
}
