// Conformance of every linear kernel of the table: values against ops/reference, and the contract
// that a row's result depends on neither M nor the number of workers.
#include "ops/reference/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/table.h"

namespace whit::cpu {
namespace {

constexpr float kSentinel = 12345.0f;
constexpr int64_t kAllM[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 64, 127};
// Above the 128 rows for which AMX's kernels keep a group of codes in tiles.
constexpr int64_t kLargestM = 145;

using Random = std::mt19937;

float uniform(Random& random, float low, float high) {
  return low + (high - low) * static_cast<float>(random() >> 8) * 0x1p-24f;
}

// A stack of weights, one after the other along N, and the whole as one canonical matrix.
struct TestWeight {
  std::vector<QuantizedTensor> quantized;
  std::vector<Tensor> dense;
  std::vector<WeightView> parts;
  int64_t n = 0;
};

enum class Codes { kRandom, kExtreme };

QuantizedTensor random_quantized(WeightFormat format, int64_t n, int64_t k, int64_t group_size,
                                 bool symmetric, bool two_level, Codes codes, Random& random) {
  QuantizedTensor w = make_quantized(format, n, k, group_size, symmetric, two_level);
  if (format == WeightFormat::kInt8Channel) {
    for (int64_t i = 0; i < n * k; ++i)
      w.data.data<int8_t>()[i] = static_cast<int8_t>(
          codes == Codes::kExtreme ? (random() & 1 ? 127 : -127) : int(random() % 255) - 127);
    for (int64_t i = 0; i < n; ++i) w.scales.data<float>()[i] = uniform(random, 0.001f, 0.02f);
    return w;
  }
  if (format == WeightFormat::kFp8Channel) {
    for (int64_t i = 0; i < n * k; ++i)
      w.data.data<uint8_t>()[i] = static_cast<uint8_t>(
          (codes == Codes::kExtreme ? 0x7e : random() % 0x7f) | (random() & 0x80));
    for (int64_t i = 0; i < n; ++i) w.scales.data<float>()[i] = uniform(random, 0.001f, 0.02f);
    return w;
  }
  const int64_t groups = ceil_div(k, group_size);
  for (int64_t i = 0; i < w.data.size(); ++i)
    w.data.data<uint8_t>()[i] =
        codes == Codes::kExtreme ? 0xff : static_cast<uint8_t>(random() & 0xff);
  for (int64_t i = 0; i < n * groups; ++i)
    w.scales.data<uint16_t>()[i] = f32_to_f16(uniform(random, 0.001f, 0.1f));
  for (int64_t i = 0; !symmetric && i < w.zeros.size(); ++i)
    w.zeros.data<uint8_t>()[i] = codes == Codes::kExtreme ? 0 : static_cast<uint8_t>(random());
  for (int64_t row = 0; two_level && row < n; ++row) {
    const float step = two_level_step_near(uniform(random, 0.0001f, 0.01f));
    for (int64_t g = 0; g < groups; ++g) {
      const int zero =
          symmetric
              ? 8
              : w.zeros.data<uint8_t>()[row * ceil_div(groups, 2) + g / 2] >> (4 * (g & 1)) & 15;
      const int most = most_multiple(static_cast<float>(zero));
      const int multiple = codes == Codes::kExtreme
                               ? most
                               : 1 + static_cast<int>(random() % static_cast<uint32_t>(most));
      w.scales.data<uint16_t>()[row * groups + g] = f32_to_f16(static_cast<float>(multiple) * step);
    }
  }
  return w;
}

Tensor random_dense(DType dtype, int64_t n, int64_t k, Random& random) {
  Tensor w(dtype, {n, k});
  for (int64_t i = 0; i < n * k; ++i) {
    const float value = uniform(random, -1, 1);
    if (dtype == DType::kF32) w.data<float>()[i] = value;
    if (dtype == DType::kF16) w.data<uint16_t>()[i] = f32_to_f16(value);
    if (dtype == DType::kBF16) w.data<uint16_t>()[i] = f32_to_bf16(value);
  }
  return w;
}

struct WeightSpec {
  WeightFormat format;
  std::vector<int64_t> rows;  // of each part
  int64_t k = 0, group_size = 0;
  bool symmetric = true;
  Codes codes = Codes::kRandom;
  bool two_level = false;
};

TestWeight make_weight(const WeightSpec& spec, Random& random) {
  TestWeight weight;
  for (int64_t n : spec.rows) {
    if (spec.format == WeightFormat::kInt4Group || scaled_rows(spec.format)) {
      weight.quantized.push_back(random_quantized(spec.format, n, spec.k, spec.group_size,
                                                  spec.symmetric, spec.two_level, spec.codes,
                                                  random));
      weight.parts.push_back(weight.quantized.back().view());
    } else {
      const DType dtype = spec.format == WeightFormat::kF32   ? DType::kF32
                          : spec.format == WeightFormat::kF16 ? DType::kF16
                                                              : DType::kBF16;
      weight.dense.push_back(random_dense(dtype, n, spec.k, random));
      weight.parts.push_back(
          {.format = spec.format, .n = n, .k = spec.k, .data = weight.dense.back().data<void>()});
    }
    weight.n += n;
  }
  return weight;
}

// kLargestM rows of activations of both kinds, with bias and residual.
struct TestInput {
  int64_t x_stride, residual_stride;
  std::vector<float> x, bias, residual, scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> group_sums;
  Int8Rows q;
};

TestInput make_input(int64_t n, int64_t k, int64_t group_size, Codes codes, Random& random) {
  TestInput input;
  input.x_stride = k + 5;
  input.residual_stride = n + 2;
  input.x.assign(kLargestM * input.x_stride, NAN);  // what lies between rows must not be used
  for (int64_t m = 0; m < kLargestM; ++m)
    for (int64_t i = 0; i < k; ++i) input.x[m * input.x_stride + i] = uniform(random, -2, 2);
  for (int64_t i = 0; i < n; ++i) input.bias.push_back(uniform(random, -1, 1));
  for (int64_t i = 0; i < kLargestM * input.residual_stride; ++i)
    input.residual.push_back(uniform(random, -1, 1));

  const int64_t stride = round_up(k, 64), groups = ceil_div(k, group_size);
  input.codes.assign(kLargestM * stride, 0);
  input.group_sums.assign(kLargestM * groups, 0);
  for (int64_t m = 0; m < kLargestM; ++m) {
    input.scales.push_back(uniform(random, 0.001f, 0.05f));
    const bool all_positive = codes == Codes::kExtreme && m % 2 == 0;
    for (int64_t i = 0; i < k; ++i) {
      const int code = all_positive               ? 127
                       : codes == Codes::kExtreme ? -127
                                                  : int(random() % 255) - 127;
      input.codes[m * stride + i] = static_cast<int8_t>(code);
      input.group_sums[m * groups + i / group_size] += code;
    }
  }
  input.q = {.q = input.codes.data(),
             .stride = stride,
             .scale = input.scales.data(),
             .group_sums = input.group_sums.data(),
             .group_size = group_size};
  return input;
}

enum class Extras { kNone, kBias, kResidual, kBiasAndAliasedResidual };

// y [m, n] by `workers` workers, one after the other: no row of the table lets workers meet.
std::vector<float> run(const PackedWeight& packed, const TestInput& input, int64_t m, int workers,
                       Extras extras) {
  const LinearKernel& kernel = *packed.kernel;
  const int64_t n = packed.n, y_stride = n + 3;
  std::vector<float> y(m * y_stride, kSentinel);
  const int64_t scratch_bytes = kernel.scratch_bytes(packed, m);
  Buffer scratch(std::max<int64_t>(1, workers * scratch_bytes));
  LinearArgs args{.weight = &packed, .m = m, .y = y.data(), .y_stride = y_stride};
  args.scratch = scratch.as<std::byte>();
  if (kernel.activation == Activation::kFloat) {
    args.x = input.x.data();
    args.x_stride = input.x_stride;
  } else {
    args.q = input.q;
  }
  if (extras == Extras::kBias || extras == Extras::kBiasAndAliasedResidual)
    args.bias = input.bias.data();
  if (extras == Extras::kResidual) {
    args.residual = input.residual.data();
    args.residual_stride = input.residual_stride;
  }
  if (extras == Extras::kBiasAndAliasedResidual) {
    for (int64_t i = 0; i < m; ++i)
      std::copy_n(&input.residual[i * input.residual_stride], n, &y[i * y_stride]);
    args.residual = y.data();
    args.residual_stride = y_stride;
  }
  for (int index = 0; index < workers; ++index) kernel.run(args, {index, workers});
  std::vector<float> result;
  for (int64_t i = 0; i < m; ++i) {
    result.insert(result.end(), &y[i * y_stride], &y[i * y_stride] + n);
    for (int64_t gap = n; gap < y_stride; ++gap)
      EXPECT_EQ(y[i * y_stride + gap], kSentinel) << "wrote past column N of row " << i;
  }
  return result;
}

double largest_activation(const TestInput& input, int64_t m, int64_t k) {
  double largest = 0;
  for (int64_t i = 0; i < k; ++i)
    largest = std::max<double>(largest, std::fabs(input.x[m * input.x_stride + i]));
  return largest;
}

// Errors of a chain of `terms` f32 operations: each rounds by at most 2⁻²⁴ of the sum of
// magnitudes. Where activations are rounded too, by as much of the weights' magnitudes as the
// kernel says.
void expect_near_reference(const std::vector<float>& y, const TestWeight& weight,
                           const TestInput& input, const LinearKernel& kernel, int64_t terms,
                           Extras extras) {
  int64_t column = 0;
  for (const WeightView& part : weight.parts) {
    std::vector<double> expected(kLargestM * part.n), magnitude(kLargestM * part.n);
    std::vector<double> unused(part.n), weights(part.n);
    const std::vector<float> ones(kernel.activation_error > 0 ? part.k : 0, 1.0f);
    if (!ones.empty())
      reference::linear({.weight = part,
                         .m = 1,
                         .x = ones.data(),
                         .x_stride = part.k,
                         .y = unused.data(),
                         .magnitude = weights.data()});
    const bool with_bias = extras == Extras::kBias || extras == Extras::kBiasAndAliasedResidual;
    const bool with_residual =
        extras == Extras::kResidual || extras == Extras::kBiasAndAliasedResidual;
    reference::LinearArgs args{.weight = part, .m = kLargestM};
    if (kernel.activation == Activation::kFloat) {
      args.x = input.x.data();
      args.x_stride = input.x_stride;
    } else {
      args.q = input.q;
    }
    args.bias = with_bias ? input.bias.data() + column : nullptr;
    args.residual = with_residual ? input.residual.data() + column : nullptr;
    args.residual_stride = input.residual_stride;
    args.y = expected.data();
    args.magnitude = magnitude.data();
    reference::linear(args);
    for (int64_t m = 0; m < kLargestM; ++m)
      for (int64_t n = 0; n < part.n; ++n) {
        const double tolerance = static_cast<double>(terms) * 0x1p-24 * magnitude[m * part.n + n] +
                                 kernel.activation_error * (1 + 0x1p-20) *
                                     largest_activation(input, m, part.k) * weights[n];
        ASSERT_NEAR(y[m * weight.n + column + n], expected[m * part.n + n], tolerance)
            << "row " << m << ", column " << column + n;
      }
    column += part.n;
  }
}

// Everything the contract says, for one weight and all M.
void expect_conforms(const LinearKernel& kernel, WeightSpec spec, Extras extras) {
  spec.two_level = kernel.two_level;
  SCOPED_TRACE(fmt::format("{}: N = {}, K = {}, group {}, {}{}", kernel.name,
                           fmt::join(spec.rows, " + "), spec.k, spec.group_size,
                           spec.symmetric ? "symmetric" : "asymmetric",
                           spec.codes == Codes::kExtreme ? ", extreme codes" : ""));
  Random random(static_cast<uint32_t>(spec.k * 131 + spec.rows[0]));
  const TestWeight weight = make_weight(spec, random);
  ThreadPool pool(1);
  const PackedWeight packed = pack_linear(kernel, weight.parts, pool);
  EXPECT_GE(packed.data.bytes(), packed.payload_bytes);
  const TestInput input = make_input(weight.n, spec.k, packed.group_size, spec.codes, random);

  const std::vector<float> all = run(packed, input, kLargestM, 1, extras);
  const bool exact_sums = kernel.activation == Activation::kInt8;
  const int64_t terms = (exact_sums ? ceil_div(spec.k, packed.group_size) : spec.k) + 6;
  expect_near_reference(all, weight, input, kernel, terms, extras);
  for (int64_t m : kAllM) {
    const std::vector<float> first = run(packed, input, m, m % 3 + 1, extras);
    ASSERT_TRUE(std::equal(first.begin(), first.end(), all.begin()))
        << "with M = " << m << " and " << m % 3 + 1
        << " workers the bits differ from M = " << kLargestM << " and one";
  }
  for (int workers : {2, 3})
    ASSERT_EQ(run(packed, input, kLargestM, workers, extras), all) << workers << " workers";
}

class Linear : public testing::TestWithParam<const LinearKernel*> {
 protected:
  void SetUp() override {
    if (GetParam()->isa > detected_isa())
      GTEST_SKIP() << GetParam()->name << " needs " << name(GetParam()->isa) << ", this CPU has "
                   << name(detected_isa());
  }
};

class Int8Linear : public Linear {};

bool grouped(const LinearKernel& kernel) { return kernel.format == WeightFormat::kInt4Group; }

TEST_P(Linear, agrees_with_the_reference_for_every_k) {
  for (int64_t k : {1, 7, 32, 64, 96, 100, 128, 576})
    for (int64_t group_size : {32, 64, 128}) {
      if (!grouped(*GetParam()) && group_size != 32) continue;
      expect_conforms(*GetParam(),
                      {.format = GetParam()->format,
                       .rows = {65},
                       .k = k,
                       .group_size = group_size,
                       .symmetric = group_size != 64},
                      Extras::kNone);
    }
}

TEST_P(Linear, agrees_with_the_reference_where_columns_are_cut_in_blocks) {
  // Rows that are a multiple of 1024 bytes apart may be copied; the last block may have a tail; of
  // long rows fewer are multiplied at a time.
  for (int64_t k : {1024, 1250, 9000})
    expect_conforms(*GetParam(),
                    {.format = GetParam()->format,
                     .rows = {70},
                     .k = k,
                     .group_size = k == 1024 ? 128 : 96,
                     .symmetric = false},
                    Extras::kBias);
}

TEST_P(Linear, agrees_with_the_reference_for_every_n) {
  const Extras extras[] = {Extras::kNone, Extras::kBias, Extras::kResidual,
                           Extras::kBiasAndAliasedResidual};
  int i = 0;
  for (int64_t n : {1, 16, 31, 32, 33, 63, 64, 130})
    expect_conforms(*GetParam(),
                    {.format = GetParam()->format,
                     .rows = {n},
                     .k = 100,
                     .group_size = 32,
                     .symmetric = n % 2 == 0},
                    extras[i++ % 4]);
}

TEST_P(Linear, agrees_with_the_reference_for_stacked_weights) {
  expect_conforms(*GetParam(),
                  {.format = GetParam()->format,
                   .rows = {40, 7, 33},
                   .k = 160,
                   .group_size = 64,
                   .symmetric = false},
                  Extras::kBiasAndAliasedResidual);
}

TEST_P(Linear, does_not_saturate_on_extreme_codes) {
  for (int64_t group_size : {32, 96, 640})
    expect_conforms(*GetParam(),
                    {.format = GetParam()->format,
                     .rows = {33},
                     .k = 600,
                     .group_size = group_size,
                     .symmetric = false,
                     .codes = Codes::kExtreme},
                    Extras::kNone);
}

TEST_P(Linear, rows_without_values_and_rows_of_zeros_stay_among_themselves) {
  if (GetParam()->activation != Activation::kFloat) return;
  Random random(9);
  const TestWeight weight =
      make_weight({.format = GetParam()->format, .rows = {33}, .k = 100, .group_size = 32}, random);
  ThreadPool pool(1);
  const PackedWeight packed = pack_linear(*GetParam(), weight.parts, pool);
  TestInput input = make_input(weight.n, 100, packed.group_size, Codes::kRandom, random);
  const std::vector<float> plain = run(packed, input, kLargestM, 1, Extras::kNone);
  const auto row = [&](int64_t m) { return &input.x[m * input.x_stride]; };
  row(0)[97] = NAN;
  row(2)[3] = INFINITY;
  std::fill(row(4), row(4) + 100, 0.0f);
  for (int i = 0; i < 100; ++i) row(6)[i] *= 1e-42f;  // 1 / largest is infinite
  for (const int64_t m : {int64_t{8}, kLargestM}) {
    const std::vector<float> y = run(packed, input, m, 1, Extras::kNone);
    for (int64_t n = 0; n < weight.n; ++n) {
      EXPECT_TRUE(std::isnan(y[n]));
      EXPECT_FALSE(std::isfinite(y[2 * weight.n + n]));
      EXPECT_EQ(y[4 * weight.n + n], 0);
      EXPECT_NEAR(y[6 * weight.n + n], 0, 1e-38);
      for (const int64_t other : {1, 3, 5, 7})
        EXPECT_EQ(y[other * weight.n + n], plain[other * weight.n + n]);
    }
  }
}

TEST_P(Int8Linear, equals_the_portable_row_in_bits) {
  const LinearKernel& kernel = *GetParam();
  const LinearKernel& portable =
      linear_kernel(kernel.format, kernel.activation, Isa::kPortable, kernel.two_level);
  Random random(5);
  for (Codes codes : {Codes::kRandom, Codes::kExtreme})
    for (int64_t group_size : {32, 128, 300}) {
      const TestWeight weight = make_weight({.format = kernel.format,
                                             .rows = {70},
                                             .k = 300,
                                             .group_size = group_size,
                                             .symmetric = false,
                                             .codes = codes,
                                             .two_level = kernel.two_level},
                                            random);
      ThreadPool pool(2);
      const PackedWeight a = pack_linear(kernel, weight.parts, pool);
      const PackedWeight b = pack_linear(portable, weight.parts, pool);
      const TestInput input = make_input(weight.n, 300, a.group_size, codes, random);
      for (int64_t m : {1, 3, 6, 9, 40})
        EXPECT_EQ(run(a, input, m, 1, Extras::kBiasAndAliasedResidual),
                  run(b, input, m, 1, Extras::kBiasAndAliasedResidual))
            << "M = " << m << ", group " << group_size;
    }
}

TEST_P(Int8Linear, uses_a_static_activation_scale_where_there_is_one) {
  Random random(6);
  const TestWeight weight = make_weight({.format = GetParam()->format,
                                         .rows = {33},
                                         .k = 96,
                                         .group_size = 32,
                                         .two_level = GetParam()->two_level},
                                        random);
  ThreadPool pool(1);
  const PackedWeight packed = pack_linear(*GetParam(), weight.parts, pool);
  TestInput input = make_input(weight.n, 96, packed.group_size, Codes::kRandom, random);
  input.q.static_scale = 0.125f;
  input.q.scale = nullptr;
  const std::vector<float> y = run(packed, input, kLargestM, 1, Extras::kNone);
  expect_near_reference(y, weight, input, *GetParam(), 16, Extras::kNone);
}

std::vector<const LinearKernel*> rows_with(std::initializer_list<Activation> activations) {
  std::vector<const LinearKernel*> rows;
  for (const LinearKernel& row : linear_kernels())
    if (std::count(activations.begin(), activations.end(), row.activation) > 0)
      rows.push_back(&row);
  return rows;
}

std::string test_name(const testing::TestParamInfo<const LinearKernel*>& test) {
  std::string text(test.param->name);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return !std::isalnum(c); }, '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(Rows, Linear,
                         testing::ValuesIn(rows_with({Activation::kFloat, Activation::kInt8})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Rows, Int8Linear, testing::ValuesIn(rows_with({Activation::kInt8})),
                         test_name);

TEST(LinearTable, has_a_row_of_every_isa_for_every_pair_that_schemes_need) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    // Tiles multiply int8 alone.
    for (WeightFormat format : {WeightFormat::kInt4Group, WeightFormat::kInt8Channel})
      EXPECT_EQ(linear_kernel(format, Activation::kFloat, isa).isa, isa) << name(format);
    for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kFp8Channel})
      EXPECT_EQ(linear_kernel(format, Activation::kFloat, isa).isa, std::min(isa, Isa::kAvx512))
          << name(format);
    for (WeightFormat format : {WeightFormat::kInt4Group, WeightFormat::kInt8Channel})
      EXPECT_EQ(linear_kernel(format, Activation::kInt8, isa).isa, isa) << name(format);
    const LinearKernel& exact =
        linear_kernel(WeightFormat::kInt4Group, Activation::kInt8, isa, true);
    EXPECT_EQ(exact.isa, isa);
    EXPECT_TRUE(exact.two_level);
    EXPECT_FALSE(linear_kernel(WeightFormat::kInt4Group, Activation::kFloat, isa, true).two_level);
  }
  EXPECT_THROW(linear_kernel(WeightFormat::kF32, Activation::kInt8, Isa::kAvx512), Error);
}

TEST(LinearTable, packs_half_precision_sources_with_dense_kernels) {
  Random random(7);
  ThreadPool pool(1);
  for (WeightFormat source : {WeightFormat::kF16, WeightFormat::kBF16}) {
    const TestWeight weight = make_weight({.format = source, .rows = {35}, .k = 70}, random);
    const TestInput input = make_input(weight.n, 70, 70, Codes::kRandom, random);
    const LinearKernel& kernel =
        linear_kernel(WeightFormat::kF32, Activation::kFloat, detected_isa());
    const PackedWeight packed = pack_linear(kernel, weight.parts, pool);
    expect_near_reference(run(packed, input, kLargestM, 1, Extras::kNone), weight, input, kernel,
                          76, Extras::kNone);
  }
}

TEST(LinearTable, refuses_two_level_weights_whose_scales_are_none) {
  Random random(10);
  ThreadPool pool(2);
  TestWeight weight = make_weight({.format = WeightFormat::kInt4Group,
                                   .rows = {40},
                                   .k = 128,
                                   .group_size = 32,
                                   .two_level = true},
                                  random);
  for (Isa isa : {Isa::kPortable, Isa::kAvx2}) {
    const LinearKernel& kernel =
        linear_kernel(WeightFormat::kInt4Group, Activation::kInt8, isa, true);
    EXPECT_NO_THROW(pack_linear(kernel, weight.parts, pool));
    WeightView plain = weight.parts[0];
    plain.two_level = false;
    EXPECT_THROW(pack_linear(kernel, {&plain, 1}, pool), Error);
    QuantizedTensor damaged = make_quantized(WeightFormat::kInt4Group, 40, 128, 32, true, true);
    for (int64_t i = 0; i < 160; ++i)
      damaged.scales.data<uint16_t>()[i] = f32_to_f16(1.0f + 0.25f * static_cast<float>(i % 4));
    EXPECT_NO_THROW(pack_linear(kernel, std::vector{damaged.view()}, pool));  // 4, 5, 6 and 7 steps
    for (const float scale : {0.0f, 0.7f, -1.0f, INFINITY}) {
      damaged.scales.data<uint16_t>()[5] = f32_to_f16(scale);
      EXPECT_THROW(pack_linear(kernel, std::vector{damaged.view()}, pool), Error) << scale;
    }
  }
}

TEST(LinearTable, refuses_weights_that_cannot_be_packed) {
  Random random(8);
  ThreadPool pool(1);
  const LinearKernel& kernel =
      linear_kernel(WeightFormat::kInt4Group, Activation::kInt8, Isa::kPortable);
  const auto pack = [&](std::span<const WeightView> parts) { pack_linear(kernel, parts, pool); };
  TestWeight weight = make_weight(
      {.format = WeightFormat::kInt4Group, .rows = {8, 8}, .k = 64, .group_size = 32}, random);
  EXPECT_NO_THROW(pack(weight.parts));
  EXPECT_THROW(pack({}), Error);
  std::vector<WeightView> parts = weight.parts;
  parts[1].group_size = 64;
  EXPECT_THROW(pack(parts), Error);
  parts = weight.parts;
  parts[0].k = 32;
  EXPECT_THROW(pack(parts), Error);
  parts = weight.parts;
  parts[0].group_size = parts[1].group_size = 20;
  EXPECT_THROW(pack(parts), Error);
  parts = weight.parts;
  parts[0].format = parts[1].format = WeightFormat::kInt8Channel;
  EXPECT_THROW(pack(parts), Error);
}

TEST(Isa, names_are_parsed_and_unknown_ones_refused) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx})
    EXPECT_EQ(parse_isa(name(isa)), isa);
  EXPECT_THROW(parse_isa("avx1024"), Error);
}

}  // namespace
}  // namespace whit::cpu
