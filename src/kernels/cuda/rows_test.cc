// Norms, activations and quantization of long rows, which the blocks of a cluster share where rows
// are few: the same bits as one block makes, and near the formula.
// Where there is no GPU the reason is printed and the tests are skipped.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "base/checked.h"
#include "base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_test_util.h"
#include "kernels/cuda/small_ops.h"
#include "ops/reference/quantize.h"
#include "tensor/dtype.h"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

struct Rows {
  std::vector<uint16_t> y;
  std::vector<int8_t> q;
  std::vector<float> scale;
  bool operator==(const Rows&) const = default;
};

class CudaRows : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    try {
      device_ = open_device();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 1.5f);
    for (std::vector<uint16_t>* values : {&gate_, &up_}) {
      values->resize(kRows * width_);
      for (uint16_t& value : *values) value = f32_to_bf16(normal(random));
    }
  }

  template <typename T>
  std::vector<T> read(const DeviceBuffer& buffer, int64_t count) {
    HostBuffer host(*device_, buffer.bytes());
    device_->download(host.as<void>(), buffer.as<void>(), buffer.bytes());
    device_->wait();
    return {host.as<T>(), host.as<T>() + count};
  }
  DeviceBuffer copy(const std::vector<uint16_t>& values) {
    DeviceBuffer buffer(*device_, std::ssize(values) * 2, "a test");
    device_->upload_and_wait(buffer.as<void>(), values.data(), buffer.bytes());
    return buffer;
  }
  // Rows 0…t−1 of what `run` writes.
  template <typename Run>
  Rows rows(int64_t t, Run run, CodeType codes = CodeType::kInt8) {
    const int64_t q_stride = round_up(width_, 16);
    DeviceBuffer y(*device_, t * width_ * 2, "a test"), q(*device_, t * q_stride, "a test"),
        scale(*device_, t * 4, "a test");
    device_->fill_zero(q.as<void>(), q.bytes());
    run(RowsOut{.y = y.as<void>(),
                .y_stride = width_,
                .q = q.as<int8_t>(),
                .codes = codes,
                .q_stride = q_stride,
                .scale = scale.as<float>()});
    return {read<uint16_t>(y, t * width_), read<int8_t>(q, t * q_stride), read<float>(scale, t)};
  }
  Rows silu_mul(int64_t t, CodeType codes = CodeType::kInt8) {
    const DeviceBuffer gate = copy(gate_), up = copy(up_);
    return rows(
        t,
        [&](const RowsOut& out) {
          small_ops().silu_mul({.gate = gate.as<void>(),
                                .gate_stride = width_,
                                .up = up.as<void>(),
                                .up_stride = width_,
                                .t = t,
                                .f = width_,
                                .out = out},
                               device_->stream());
        },
        codes);
  }
  Rows quantize(int64_t t, CodeType codes = CodeType::kInt8) {
    const DeviceBuffer x = copy(gate_);
    return rows(
        t,
        [&](const RowsOut& out) {
          small_ops().quantize(
              {.x = x.as<void>(), .x_stride = width_, .t = t, .k = width_, .out = out},
              device_->stream());
        },
        codes);
  }
  static Rows first(const Rows& all, int64_t t, int64_t of) {
    const auto part = [&](const auto& values) {
      return std::decay_t<decltype(values)>(values.begin(),
                                            values.begin() + std::ssize(values) / of * t);
    };
    return {part(all.y), part(all.q), part(all.scale)};
  }

  static constexpr int64_t kRows = 17;  // one more than clusters share
  const int64_t width_ = GetParam();
  std::unique_ptr<Device> device_;
  std::vector<uint16_t> gate_, up_;
};

TEST_P(CudaRows, are_the_same_few_or_many) {
  const Rows activations = silu_mul(kRows), codes = quantize(kRows);
  for (const int64_t t : {1, 5, 16}) {
    EXPECT_TRUE(silu_mul(t) == first(activations, t, kRows)) << t << " rows";
    EXPECT_TRUE(quantize(t).q == first(codes, t, kRows).q) << t << " rows";
  }
}

// expf is within two units of the last place of f32, and the row is then rounded to bf16, or to
// codes that may lie on the border of two.
TEST_P(CudaRows, are_the_formula) {
  const Rows got = silu_mul(3);
  const int64_t q_stride = round_up(width_, 16);
  for (int64_t row = 0; row < 3; ++row) {
    std::vector<double> expected(width_);
    double largest = 0;
    for (int64_t i = 0; i < width_; ++i) {
      const double gate = bf16_to_f32(gate_[row * width_ + i]);
      expected[i] = gate / (1 + std::exp(-gate)) * bf16_to_f32(up_[row * width_ + i]);
      largest = std::max(largest, std::fabs(expected[i]));
    }
    EXPECT_NEAR(got.scale[row], largest / 127, largest / 127 * 1e-6);
    for (int64_t i = 0; i < width_; ++i) {
      ASSERT_NEAR(bf16_to_f32(got.y[row * width_ + i]), expected[i],
                  std::fabs(expected[i]) * (0x1p-8 + 1e-6) + 1e-30)
          << row << ", " << i;
      ASSERT_NEAR(got.q[row * q_stride + i] * (largest / 127), expected[i], largest / 127 * 0.501)
          << row << ", " << i;
    }
  }
}

// The CPU's, bit by bit: of the least and the greatest numbers too, and where some are none.
TEST_P(CudaRows, of_int8_are_the_reference) {
  const std::array<float, 14> factors = {0,         0x1p-133f, 0x1p-126f, 0x1p-122f, 0x1p-121f,
                                         0x1p-120f, 0x1p-91f,  0x1p-90f,  1,         0x1p60f,
                                         0x1p117f,  0x1p118f,  0x1p120f,  0x1p124f};
  const int64_t t = std::ssize(factors) + 2;
  for (int64_t row = 0; row < t; ++row)
    for (int64_t i = 0; i < width_; ++i) {
      uint16_t& value = gate_[row * width_ + i];
      value = f32_to_bf16(bf16_to_f32(value) * factors[row % std::ssize(factors)]);
    }
  gate_[(t - 2) * width_ + 5] = f32_to_bf16(std::numeric_limits<float>::infinity());
  gate_[(t - 1) * width_ + width_ - 1] = f32_to_bf16(std::numeric_limits<float>::quiet_NaN());
  const Rows got = quantize(t);
  const int64_t q_stride = round_up(width_, 16);
  std::vector<float> x(width_);
  std::vector<int8_t> codes(width_);
  for (int64_t row = 0; row < t; ++row) {
    for (int64_t i = 0; i < width_; ++i) x[i] = bf16_to_f32(gate_[row * width_ + i]);
    float scale = 0;
    reference::quantize_row(x.data(), width_,
                            {.q = codes.data(), .stride = width_, .scale = &scale}, 0);
    if (std::isnan(scale))
      EXPECT_TRUE(std::isnan(got.scale[row])) << row;
    else
      EXPECT_EQ(got.scale[row], scale) << row;
    for (int64_t i = 0; i < width_; ++i)
      ASSERT_EQ(got.q[row * q_stride + i], codes[i]) << row << ", " << i;
  }
}

// The CPU's, bit by bit.
TEST_P(CudaRows, of_e4m3_are_the_reference) {
  const int64_t q_stride = round_up(width_, 16);
  const Rows quantized = quantize(3, CodeType::kE4m3), activations = silu_mul(3, CodeType::kE4m3);
  std::vector<float> x(width_), expected(width_);
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < width_; ++i) x[i] = bf16_to_f32(gate_[row * width_ + i]);
    reference::round_row_to_fp8(x.data(), width_, 0, expected.data());
    float largest = 0;
    for (int64_t i = 0; i < width_; ++i) {
      const auto code = static_cast<uint8_t>(quantized.q[row * q_stride + i]);
      ASSERT_EQ(e4m3_to_f32(code) * quantized.scale[row], expected[i]) << row << ", " << i;
      const auto activation = static_cast<uint8_t>(activations.q[row * q_stride + i]);
      largest = std::max(largest, std::fabs(e4m3_to_f32(activation)));
    }
    EXPECT_EQ(largest, 448.0f);
  }
}

// Rows that a product makes for itself: those of the kernels that make them alone.
TEST_P(CudaRows, products_make_the_same) {
  const int64_t k = width_, n = 200;
  LinearRunner runner;
  ThreadPool pool(2);
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> hidden(kMostMadeRows * k), norm(k);
  for (float& value : hidden) value = normal(random);
  for (float& value : norm) value = 1 + 0.3f * normal(random);
  const auto copy_floats = [&](const std::vector<float>& values) {
    DeviceBuffer buffer(*device_, std::ssize(values) * 4, "a test");
    device_->upload_and_wait(buffer.as<void>(), values.data(), buffer.bytes());
    return buffer;
  };
  const DeviceBuffer x = copy_floats(hidden), weight = copy_floats(norm), halves = copy(gate_);
  for (const auto& [format, group] :
       {std::pair{LinearFormat::kW4A8, 128}, std::pair{LinearFormat::kW4A8, 64},
        std::pair{LinearFormat::kW4A8TwoLevel, 128}, std::pair{LinearFormat::kW8A8, 0},
        std::pair{LinearFormat::kW4AFp8, 64}, std::pair{LinearFormat::kW4A16, 128},
        std::pair{LinearFormat::kW4A16, 64}, std::pair{LinearFormat::kW8A16, 0}}) {
    const bool int4 = group > 0, fp8 = format == LinearFormat::kW4AFp8;
    const bool floats = input_of(format) == LinearInput::kBf16;
    // In groups of 128 e4m3 rows are made before their product on Hopper.
    const int64_t group_size = group;
    auto made = random_weight(int4 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel, n, k,
                              group_size, int4, 1);
    if (format == LinearFormat::kW4A8TwoLevel) make_two_level(made, 2);
    const WeightView view = made.view();
    std::vector<std::byte> packed(packed_bytes(format, n, k, group_size));
    LinearArgs args;
    args.weight = pack_linear(format, {&view, 1}, packed.data(), pool);
    const DeviceBuffer data(*device_, std::ssize(packed), "a test");
    device_->upload_and_wait(data.as<void>(), packed.data(), data.bytes());
    args.weight.data = data.as<void>();
    args.y_stride = n;
    args.y_type = OutputType::kF32;
    for (const float static_scale : {0.0f, 0.02f})
      for (int64_t m = 1; m <= kMostMadeRows; ++m) {
        const auto makes = [&](RowSource::Kind kind) {
          return runner.makes_rows(args.weight, m, kind);
        };
        EXPECT_EQ(makes(RowSource::Kind::kRmsNorm), k % 8 == 0 && (!floats || k <= kMostWarpRow));
        EXPECT_EQ(makes(RowSource::Kind::kQuantize), k % 8 == 0 && !floats);
        args.m = m;
        const int64_t stride = round_up(k, 16);
        DeviceBuffer q(*device_, m * stride * (floats ? 2 : 1), "a test"),
            scale(*device_, m * 4, "a test"), y(*device_, m * n * 4, "a test");
        const auto product = [&](const RowSource& source) {
          args.source = source;
          args.x = q.as<void>();
          args.x_stride = stride;
          args.x_scale = floats ? nullptr : scale.as<float>();
          args.y = y.as<void>();
          device_->fill_zero(y.as<void>(), y.bytes());
          runner.run(args, device_->stream());
          return read<uint32_t>(y, m * n);
        };
        const RowsOut out = floats ? RowsOut{.y = q.as<void>(), .y_stride = stride}
                                   : RowsOut{.q = q.as<int8_t>(),
                                             .codes = fp8 ? CodeType::kE4m3 : CodeType::kInt8,
                                             .q_stride = stride,
                                             .scale = scale.as<float>(),
                                             .static_scale = static_scale};
        if (!makes(RowSource::Kind::kRmsNorm)) continue;
        small_ops().rms_norm({.x = x.as<float>(),
                              .rows = nullptr,
                              .weight = weight.as<float>(),
                              .eps = 1e-5f,
                              .t = m,
                              .d = k,
                              .out = out},
                             device_->stream());
        const auto normed = product({});
        EXPECT_EQ(product({.kind = RowSource::Kind::kRmsNorm,
                           .x = x.as<void>(),
                           .x_stride = k,
                           .weight = weight.as<float>(),
                           .eps = 1e-5f,
                           .static_scale = static_scale}),
                  normed)
            << name(format) << ", " << m << " rows";
        if (!makes(RowSource::Kind::kQuantize)) continue;
        small_ops().quantize({.x = halves.as<void>(), .x_stride = k, .t = m, .k = k, .out = out},
                             device_->stream());
        const auto quantized = product({});
        EXPECT_NE(quantized, normed);
        EXPECT_EQ(product({.kind = RowSource::Kind::kQuantize,
                           .x = halves.as<void>(),
                           .x_stride = k,
                           .static_scale = static_scale}),
                  quantized)
            << name(format) << ", " << m << " rows";
      }
  }
}

// A product of gates and ups that activates them, and one that quantizes that: as four kernels do.
TEST(CudaActivatedRows, are_those_of_kernels_of_their_own) {
  std::unique_ptr<Device> device;
  try {
    device = open_device();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  LinearRunner runner;
  ThreadPool pool(2);
  const int64_t n = 200;
  struct Case {
    LinearFormat format;
    int64_t k, f, group_size;  // 0: of 8 bits
  };
  // The first three by the kernel that streams by bulk copies where there is one, the others in
  // chunks of K by the portable kernel.
  for (const auto& [format, k, f, group_size] :
       {Case{LinearFormat::kW4A8, 256, 8448, 128},
        Case{LinearFormat::kW4A8TwoLevel, 256, 8448, 128}, Case{LinearFormat::kW8A8, 256, 8448, 0},
        Case{LinearFormat::kW4A8, 576, 1536, 64}, Case{LinearFormat::kW8A8, 576, 1536, 0},
        Case{LinearFormat::kW4AFp8, 576, 1536, 64}, Case{LinearFormat::kW4A16, 576, 1536, 64},
        Case{LinearFormat::kW8A16, 576, 1536, 0}}) {
    const bool int4 = group_size > 0, floats = input_of(format) == LinearInput::kBf16;
    std::mt19937 random(6);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> hidden(kMostMadeRows * k), norm(k, 1.0f);
    for (float& value : hidden) value = normal(random);
    const auto copy = [&](const void* from, int64_t bytes) {
      DeviceBuffer buffer(*device, bytes, "a test");
      device->upload_and_wait(buffer.as<void>(), from, bytes);
      return buffer;
    };
    const DeviceBuffer x = copy(hidden.data(), std::ssize(hidden) * 4),
                       weight = copy(norm.data(), k * 4);
    std::vector<DeviceBuffer> data;
    const auto linear = [&](int64_t rows, int64_t columns) {
      auto made = random_weight(int4 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel, rows,
                                columns, group_size, int4, 1);
      if (format == LinearFormat::kW4A8TwoLevel) make_two_level(made, 2);
      const WeightView view = made.view();
      std::vector<std::byte> packed(packed_bytes(format, rows, columns, group_size));
      LinearArgs args;
      args.weight = pack_linear(format, {&view, 1}, packed.data(), pool);
      data.push_back(copy(packed.data(), std::ssize(packed)));
      args.weight.data = data.back().as<void>();
      return args;
    };
    LinearArgs gate_up = linear(2 * f, k), down = linear(n, f);
    DeviceBuffer halves(*device, kMostMadeRows * 2 * f * 2, "a test"),
        rows(*device, kMostMadeRows * f * 2, "a test"), scale(*device, kMostMadeRows * 4, "a test"),
        y(*device, kMostMadeRows * n * 4, "a test"),
        activated(*device, kMostMadeRows * f * 4, "a test"),
        magnitudes(*device, 2 * kMostMadeRows * 4, "a test");
    gate_up.source = {.kind = RowSource::Kind::kRmsNorm,
                      .x = x.as<void>(),
                      .x_stride = k,
                      .weight = weight.as<float>(),
                      .eps = 1e-5f};
    down.y = y.as<void>();
    down.y_stride = n;
    down.y_type = OutputType::kF32;
    for (int64_t m = 1; m <= kMostMadeRows; ++m) {
      EXPECT_TRUE(runner.activates(gate_up.weight, m));
      EXPECT_EQ(runner.makes_rows(down.weight, m, RowSource::Kind::kActivated), !floats);
      gate_up.m = down.m = m;
      const auto result = [&] {
        device->fill_zero(y.as<void>(), y.bytes());
        runner.run(down, device->stream());
        HostBuffer host(*device, y.bytes());
        device->download(host.as<void>(), y.as<void>(), y.bytes());
        device->wait();
        return std::vector<uint32_t>(host.as<uint32_t>(), host.as<uint32_t>() + m * n);
      };
      gate_up.activated = {};
      gate_up.y = halves.as<void>();
      gate_up.y_stride = 2 * f;
      runner.run(gate_up, device->stream());
      RowsOut out;
      if (floats)
        out = {.y = rows.as<void>(), .y_stride = f};
      else
        out = {.q = rows.as<int8_t>(),
               .codes = input_of(format) == LinearInput::kE4m3 ? CodeType::kE4m3 : CodeType::kInt8,
               .q_stride = f,
               .scale = scale.as<float>()};
      small_ops().silu_mul({.gate = halves.as<uint16_t>(),
                            .gate_stride = 2 * f,
                            .up = halves.as<uint16_t>() + f,
                            .up_stride = 2 * f,
                            .t = m,
                            .f = f,
                            .out = out},
                           device->stream());
      down.source = {};
      down.x = rows.as<void>();
      down.x_stride = f;
      down.x_scale = floats ? nullptr : scale.as<float>();
      const auto expected = result();
      device->fill_zero(magnitudes.as<void>(), magnitudes.bytes());
      for (int turn = 0; turn < 4; ++turn) {
        gate_up.activated = {.y = activated.as<void>(), .stride = f};
        if (floats) {
          down.x = activated.as<void>();
        } else {
          gate_up.activated.magnitude = magnitudes.as<uint32_t>() + turn % 2 * kMostMadeRows;
          gate_up.activated.next_magnitude =
              magnitudes.as<uint32_t>() + (turn + 1) % 2 * kMostMadeRows;
          down.source = {.kind = RowSource::Kind::kActivated,
                         .x = activated.as<void>(),
                         .x_stride = f,
                         .magnitude = gate_up.activated.magnitude};
        }
        runner.run(gate_up, device->stream());
        EXPECT_EQ(result(), expected) << name(format) << ", " << m << " rows, turn " << turn;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, CudaRows,
                         ::testing::Values(576, 1024, 1536, 4096, 8192, 14336, 8200, 9001));

}  // namespace
}  // namespace whit::cuda
