// Conformance of every format's kernels with a product in double precision, and of their bits among
// batch sizes.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_test_util.h"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

struct Case {
  LinearFormat format;
  int64_t n, k, group_size;
  bool zero_points;
};

class Product {
 public:
  // Of inputs of `rows` rows, the most that run() takes.
  explicit Product(const Case& c, int64_t rows = 256)
      : case_(c), rows_(rows), random_(static_cast<uint32_t>(c.n * 31 + c.k)) {
    const bool two_level = c.format == LinearFormat::kW4A8TwoLevel;
    const WeightFormat source = c.format == LinearFormat::kFp8 ? WeightFormat::kFp8Channel
                                : c.group_size > 0             ? WeightFormat::kInt4Group
                                                               : WeightFormat::kInt8Channel;
    values_.resize(static_cast<size_t>(c.n * c.k));
    std::vector<std::byte> packed(
        static_cast<size_t>(packed_bytes(c.format, c.n, c.k, c.group_size)));
    ThreadPool pool(2);
    if (c.format == LinearFormat::kBf16) {
      std::normal_distribution<float> normal(0, 0.02f);
      for (float& value : values_) value = normal(random_);
      WeightView view{.format = WeightFormat::kF32, .n = c.n, .k = c.k, .data = values_.data()};
      weight_ = pack_linear(c.format, {&view, 1}, packed.data(), pool);
      read_back(packed);
    } else {
      auto first = random_weight(source, c.n / 2, c.k, c.group_size, c.zero_points, 1);
      auto second = random_weight(source, c.n - c.n / 2, c.k, c.group_size, c.zero_points, 2);
      if (two_level) make_two_level(first, 3), make_two_level(second, 4);
      const WeightView parts[] = {first.view(), second.view()};
      weight_ = pack_linear(c.format, parts, packed.data(), pool);
      dequantize_rows(parts[0], 0, parts[0].n, values_.data());
      dequantize_rows(parts[1], 0, parts[1].n, values_.data() + parts[0].n * c.k);
    }
    weight_.data = memory_.copy(packed);
    make_inputs();
  }

  // y of the first m rows, float [m, N]; with bias and residual if `all`, with `bias` alone if so.
  std::vector<float> run(LinearRunner& runner, int64_t m, OutputType type, bool all,
                         bool bias = false) {
    const int64_t stride = round_up(case_.n, 8) + 8;
    const size_t element = type == OutputType::kF32 ? 4 : 2;
    LinearArgs args;
    args.weight = weight_;
    args.m = m;
    args.x = x_;
    args.x_stride = x_stride_;
    args.x_scale = x_scale_;
    args.y_type = type;
    args.y_stride = stride;
    // Filled with ones, which read as NaN: what is not written shows.
    args.y = memory_.bytes(static_cast<size_t>(m * stride) * element, 0xff);
    if (all || bias) args.bias = bias_;
    if (all) {
      args.residual = type == OutputType::kF32 ? residual_f32_ : residual_bf16_;
      args.residual_stride = case_.n;
    }
    runner.run(args, nullptr);
    check(cudaDeviceSynchronize(), "linear");
    std::vector<std::byte> bytes(static_cast<size_t>(m * stride) * element);
    check(cudaMemcpy(bytes.data(), args.y, bytes.size(), cudaMemcpyDeviceToHost), "copy");
    std::vector<float> y(static_cast<size_t>(m * case_.n));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < stride; ++j) {
        const size_t at = static_cast<size_t>(i * stride + j) * element;
        uint32_t bits = 0;
        std::memcpy(&bits, &bytes[at], element);
        const float value = type == OutputType::kF32 ? std::bit_cast<float>(bits)
                                                     : bf16_to_f32(static_cast<uint16_t>(bits));
        if (j < case_.n)
          y[static_cast<size_t>(i * case_.n + j)] = value;
        else
          EXPECT_TRUE(std::isnan(value)) << "written past the row's end: " << i << ", " << j;
      }
    return y;
  }

  // Against the sum in double, within the rounding of f32 sums over K (and of the output).
  void expect_right(const std::vector<float>& y, int64_t m, OutputType type, bool all) {
    // Terms whose rounding counts: all of K where products are summed in floating point (with
    // the tensor cores' truncation of 2^-22 relative to the largest), groups where they are
    // integers.
    const bool integer = input_of(case_.format) == LinearInput::kInt8;
    const double terms =
        integer ? double(case_.k) / (case_.group_size == 128 ? 128 : 32) + 8 : double(case_.k);
    const double eps = std::ldexp(1.0, -23),
                 out = std::ldexp(1.0, type == OutputType::kF32 ? -23 : -8);
    // Hopper's fp8 products cut addends below about 2^-13 of the largest, so that errors add up.
    const bool fp8 = input_of(case_.format) == LinearInput::kE4m3;
    const double sum_eps = fp8 ? std::ldexp(1.0, -11) : eps * terms;
    double worst = 0;
    for (int64_t i = 0; i<m; i += m> 40 ? 7 : 1)
      for (int64_t j = 0; j < case_.n; ++j) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < case_.k; ++k) {
          const double term = double(values_[static_cast<size_t>(j * case_.k + k)]) *
                              x_values_[static_cast<size_t>(i * case_.k + k)];
          sum += term;
          size += std::fabs(term);
        }
        double extra = 0;
        if (all) {
          sum += bias_values_[static_cast<size_t>(j)];
          const float residual = residual_values_[static_cast<size_t>(i * case_.n + j)];
          sum += residual;
          extra = std::fabs(bias_values_[static_cast<size_t>(j)]) + std::fabs(residual);
        }
        // With a bias bf16 results of cuBLASLt are rounded twice.
        const double tolerance =
            sum_eps * size + 4 * eps * extra + (all ? 2 : 1) * out * (std::fabs(sum) + extra);
        const double error = std::fabs(y[static_cast<size_t>(i * case_.n + j)] - sum);
        worst = std::max(worst, error / tolerance);
        ASSERT_LE(error, tolerance)
            << name(case_.format) << " group " << case_.group_size << " M " << m << " row " << i
            << " column " << j << ": " << y[static_cast<size_t>(i * case_.n + j)] << " for " << sum;
      }
    EXPECT_GT(worst, 0);
  }

 private:
  void read_back(const std::vector<std::byte>& packed) {
    for (int64_t row = 0; row < case_.n; ++row)
      for (int64_t k = 0; k < case_.k; ++k) {
        const size_t at = static_cast<size_t>(row * case_.k + k);
        uint16_t bits;
        std::memcpy(&bits, &packed[2 * at], 2);
        values_[at] = bf16_to_f32(bits);
      }
  }

  void make_inputs() {
    const LinearInput input = input_of(case_.format);
    x_stride_ = round_up(case_.k, 16) + 16;
    x_values_.resize(static_cast<size_t>(rows_ * case_.k));
    // What lies between rows are NaNs, or 0x7f.
    std::vector<uint16_t> bf16(static_cast<size_t>(rows_ * x_stride_), 0x7fff);
    std::vector<uint8_t> bytes(static_cast<size_t>(rows_ * x_stride_),
                               case_.format == LinearFormat::kFp8 ? 0x7e : 0x7f);
    std::vector<float> scales(static_cast<size_t>(rows_));
    std::normal_distribution<float> normal(0, 1);
    for (int64_t i = 0; i < rows_; ++i) {
      scales[static_cast<size_t>(i)] = 0.01f + 0.0001f * float(i);
      for (int64_t k = 0; k < case_.k; ++k) {
        const size_t at = static_cast<size_t>(i * x_stride_ + k);
        float& value = x_values_[static_cast<size_t>(i * case_.k + k)];
        if (input == LinearInput::kBf16) {
          bf16[at] = f32_to_bf16(normal(random_));
          value = bf16_to_f32(bf16[at]);
        } else if (input == LinearInput::kInt8) {
          const int code = static_cast<int>(random_() % 255) - 127;
          bytes[at] = static_cast<uint8_t>(code);
          value = float(code) * scales[static_cast<size_t>(i)];
        } else {
          const int code = static_cast<int>(random_() % 120) | static_cast<int>(random_() & 128);
          bytes[at] = static_cast<uint8_t>(code);
          value = e4m3_to_f32(static_cast<uint8_t>(code)) * scales[static_cast<size_t>(i)];
        }
      }
    }
    if (input == LinearInput::kBf16) {
      x_ = memory_.copy(bf16);
    } else {
      x_ = memory_.copy(bytes);
      x_scale_ = memory_.copy(scales);
    }
    bias_values_.resize(static_cast<size_t>(case_.n));
    for (float& value : bias_values_) value = normal(random_);
    bias_ = memory_.copy(bias_values_);
    std::vector<uint16_t> residual(static_cast<size_t>(rows_ * case_.n));
    for (uint16_t& value : residual) value = f32_to_bf16(normal(random_));
    residual_values_.resize(residual.size());
    for (size_t i = 0; i < residual.size(); ++i) residual_values_[i] = bf16_to_f32(residual[i]);
    residual_bf16_ = memory_.copy(residual);
    residual_f32_ = memory_.copy(residual_values_);
  }

  Case case_;
  int64_t rows_;
  std::mt19937 random_;
  Memory memory_;
  LinearWeight weight_;
  std::vector<float> values_, x_values_, bias_values_, residual_values_;
  void* x_ = nullptr;
  int64_t x_stride_ = 0;
  float* x_scale_ = nullptr;
  float* bias_ = nullptr;
  void* residual_bf16_ = nullptr;
  void* residual_f32_ = nullptr;
};

// bf16 is what f32 rounds to, whatever way the sums take to it.
void expect_rounded(const std::vector<float>& bf16, const std::vector<float>& f32, int64_t m) {
  ASSERT_EQ(bf16.size(), f32.size());
  for (size_t i = 0; i < f32.size(); ++i)
    ASSERT_EQ(bf16[i], bf16_to_f32(f32_to_bf16(f32[i]))) << "M " << m << " at " << i;
}

void expect_conformance(const Case& c, bool batch_invariant) {
  if (!has_gpu()) GTEST_SKIP() << "no CUDA GPU";
  LinearRunner runner;
  Product product(c);
  std::vector<float> largest;
  for (const int64_t m : {256, 127, 64, 33, 17, 16, 15, 8, 2, 1})
    for (const bool all : {false, true}) {
      const auto y = product.run(runner, m, OutputType::kF32, all);
      product.expect_right(y, m, OutputType::kF32, all);
      if (all) {
        const auto rounded = product.run(runner, m, OutputType::kBf16, true);
        product.expect_right(rounded, m, OutputType::kBf16, true);
        if (!batch_invariant) continue;
        const auto biased = product.run(runner, m, OutputType::kF32, false, true);
        expect_rounded(product.run(runner, m, OutputType::kBf16, false, true), biased, m);
      } else if (batch_invariant) {
        expect_rounded(product.run(runner, m, OutputType::kBf16, false), y, m);
      }
      if (!batch_invariant || all) continue;
      if (m == 256) largest = y;
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), std::bit_cast<uint32_t>(largest[i]))
            << name(c.format) << ": M " << m << " differs from M 256 at " << i;
    }
}

TEST(CudaLinear, w4a8_is_right_and_the_same_bits_for_every_M) {
  for (const bool zero_points : {false, true})
    for (const int64_t group_size : {128, 64, 32}) {
      expect_conformance({LinearFormat::kW4A8, 200, 1104, group_size, zero_points}, true);
      if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
    }
}

TEST(CudaLinear, w4a8_of_two_level_scales_is_right_and_the_same_bits_for_every_M) {
  for (const bool zero_points : {false, true})
    for (const int64_t n : {200, 17000}) {
      expect_conformance({LinearFormat::kW4A8TwoLevel, n, n == 200 ? 1104 : 272, 128, zero_points},
                         true);
      if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
    }
}

TEST(CudaLinear, w4a8_of_one_chunk_and_of_two_is_right) {
  // The last: more rows than an SM works on at once.
  for (const auto [n, k] : {std::pair{17000, 272}, {8500, 272}, {34000, 128}}) {
    expect_conformance({LinearFormat::kW4A8, n, k, 128, true}, true);
    if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaLinear, whole_groups_of_K_are_right_and_the_same_bits_for_every_M) {
  for (const LinearFormat format : {LinearFormat::kW4A8, LinearFormat::kW4A8TwoLevel,
                                    LinearFormat::kW4A16, LinearFormat::kW8A8})
    for (const bool zero_points : {true, false}) {
      if (!zero_points && format != LinearFormat::kW4A8) continue;
      const int64_t group_size = format == LinearFormat::kW8A8 ? 0 : 128;
      // Four chunks of K, two, and one.
      for (const auto [n, k] : {std::pair{200, 1152}, {200, 128}, {8450, 256}, {16900, 128}}) {
        expect_conformance({format, n, k, group_size, zero_points && group_size > 0}, true);
        if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
      }
    }
}

TEST(CudaLinear, w8a8_is_right_and_the_same_bits_for_every_M) {
  for (const int64_t k : {1104, 1088, 64}) {
    expect_conformance({LinearFormat::kW8A8, 200, k, 0, false}, true);
    if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaLinear, w4a16_is_right_and_the_same_bits_for_every_M) {
  for (const int64_t group_size : {128, 64, 32}) {
    expect_conformance({LinearFormat::kW4A16, 200, 1094, group_size, true}, true);
    if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaLinear, w4afp8_is_right_and_the_same_bits_for_every_M) {
  for (const bool zero_points : {false, true})
    for (const int64_t group_size : {128, 64, 32}) {
      expect_conformance({LinearFormat::kW4AFp8, 200, 1094, group_size, zero_points}, true);
      if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
    }
}

TEST(CudaLinear, w4afp8_of_one_chunk_and_of_two_is_right) {
  for (const int64_t n : {17000, 8500}) {
    expect_conformance({LinearFormat::kW4AFp8, n, 272, 128, true}, true);
    if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaLinear, w8a16_is_right_and_the_same_bits_for_every_M) {
  expect_conformance({LinearFormat::kW8A16, 200, 1094, 0, false}, true);
}

TEST(CudaLinear, bf16_by_cublaslt_is_right) {
  expect_conformance({LinearFormat::kBf16, 200, 1104, 0, false}, false);
}

TEST(CudaLinear, fp8_by_cublaslt_is_right) {
  for (const int64_t k : {1104, 1094}) {
    expect_conformance({LinearFormat::kFp8, 208, k, 0, false}, false);
    if (::testing::Test::IsSkipped() || ::testing::Test::HasFatalFailure()) return;
  }
}

// Of 132 SMs all but a few tiles fill them in whole turns; those are dealt out as halves.
TEST(CudaLinear, halves_of_tiles_are_right_and_the_same_bits_for_every_M) {
  if (!has_gpu()) GTEST_SKIP() << "no CUDA GPU";
  LinearRunner runner;
  for (const LinearFormat format :
       {LinearFormat::kW4A8, LinearFormat::kW4A8TwoLevel, LinearFormat::kW4A16,
        LinearFormat::kW4AFp8, LinearFormat::kW8A8, LinearFormat::kW8A16}) {
    const bool groups = format != LinearFormat::kW8A8 && format != LinearFormat::kW8A16;
    Product product({format, 17000, 272, groups ? 128 : 0, groups}, 600);
    std::vector<float> largest;
    for (const int64_t m : {600, 500, 300, 140, 64}) {
      const auto y = product.run(runner, m, OutputType::kF32, false);
      if (m == 600) largest = y;
      if (m == 600 || m == 300) product.expect_right(y, m, OutputType::kF32, false);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), std::bit_cast<uint32_t>(largest[i]))
            << name(format) << ": M " << m << " differs from M 600 at " << i;
      expect_rounded(product.run(runner, m, OutputType::kBf16, false), y, m);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Several tiles a block, whose warpgroups take turns, and a ring that is filled anew within each;
// with f32 results the same sums come from tiles that both share.
TEST(CudaLinear, w8a8_by_warpgroups_in_turns_has_the_same_bits) {
  if (!has_gpu()) GTEST_SKIP() << "no CUDA GPU";
  LinearRunner runner;
  for (const int64_t k : {1104, 832}) {
    Product product({LinearFormat::kW8A8, 17000, k, 0, false}, 600);
    for (const int64_t m : {600, 384, 513})
      for (const bool bias : {false, true})
        expect_rounded(product.run(runner, m, OutputType::kBf16, false, bias),
                       product.run(runner, m, OutputType::kF32, false, bias), m);
  }
}

TEST(CudaLinear, refuses_arguments_that_break_its_rules) {
  if (!has_gpu()) GTEST_SKIP() << "no CUDA GPU";
  LinearRunner runner;
  LinearArgs args;
  EXPECT_THROW(runner.run(args, nullptr), Error);
}

}  // namespace
}  // namespace whit::cuda
