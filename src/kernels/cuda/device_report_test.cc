#include "kernels/cuda/device_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace whit::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <typename Report>
Error error_of(Report report) {
  try {
    report();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::kInterrupted, "nothing was thrown");
}

TEST(CudaDeviceReport, says_what_is_missing_how_much_and_what_to_do) {
  EXPECT_THAT(error_of([] { throw_no_gpu("no CUDA-capable device is detected"); }).what(),
              AllOf(HasSubstr("no CUDA-capable device is detected"), HasSubstr("8.0 or later"),
                    HasSubstr("CUDA_VISIBLE_DEVICES"), HasSubstr("--backend cpu")));
  EXPECT_THAT(
      error_of([] { throw_old_driver(12080, 13000); }).what(),
      AllOf(HasSubstr("supports CUDA 12.8"), HasSubstr("needs 13.0"), HasSubstr("--backend cpu")));
  EXPECT_THAT(error_of([] { throw_old_gpu("Tesla T4", 7, 5); }).what(),
              AllOf(HasSubstr("Tesla T4"), HasSubstr("7.5"), HasSubstr("needs 8.0"),
                    HasSubstr("--backend cpu")));
  const Error memory = error_of([] {
    throw_no_memory("H100", "the logits", int64_t{3} << 30, int64_t{1} << 30, int64_t{80} << 30);
  });
  EXPECT_EQ(memory.kind(), ErrorKind::kResource);
  EXPECT_THAT(memory.what(), AllOf(HasSubstr("the logits"), HasSubstr("H100"), HasSubstr("3."),
                                   HasSubstr("--backend cpu")));
}

}  // namespace
}  // namespace whit::cuda
