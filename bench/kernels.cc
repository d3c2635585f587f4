// Speed of every linear kernel of the CPU table, beside this machine's bounds.
//
//   bench_kernels [--isa NAME] [--threads T] [--kernel SUBSTRING] [--m LIST] [--shape NxK,…]
//   [--ring MB]
//
// Weights are read from a ring of copies far larger than the last-level cache, so that M = 1 shows
// what decoding a model does. Columns: the best time of a call and the median, and from the best
// one 2·M·N·K operations a second, packed bytes a second, the share of the measured cold read
// bandwidth, and the share of the arithmetic peak: of f32 activations 32 flop (FMA) a clock and
// core on AVX2 and twice as many on AVX-512, at the measured clock; of those that a kernel
// multiplies as int16 half of int8's; of int8 ones the measured rate of vpmaddubsw, vpdpbusd or
// tdpbssd.
#include <fmt/format.h>
#include <immintrin.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

#include "kernels/cpu/limits.h"
#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

// Wall time; with one thread the time that the thread ran, so that other load on the machine
// matters less.
class Stopwatch {
 public:
  explicit Stopwatch(const ThreadPool& pool)
      : clock_(pool.size() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC), start_(now()) {}
  double seconds() const { return now() - start_; }

 private:
  double now() const {
    timespec time;
    clock_gettime(clock_, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  clockid_t clock_;
  double start_;
};

struct Shape {
  int64_t n, k;
};

struct Options {
  Isa isa = detected_isa();
  int threads = 0;
  std::string kernel;
  std::vector<int64_t> m = {1, 2, 4, 8, 16, 64, 512};
  std::vector<Shape> shapes = {{576, 576},  {960, 576},   {3072, 576},
                               {576, 1536}, {49152, 576}, {4096, 4096}};
  int64_t ring_bytes = int64_t{384} << 20;
};

int64_t parse_int(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw Error(ErrorKind::kInvalidArgument, "\"{}\" is not a positive number", text);
  return value;
}

std::vector<std::string_view> split_list(std::string_view text, char separator) {
  std::vector<std::string_view> items;
  while (true) {
    const size_t at = text.find(separator);
    items.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return items;
    text.remove_prefix(at + 1);
  }
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (i + 1 == argc) throw Error(ErrorKind::kInvalidArgument, "{} needs a value", flag);
    const std::string_view value = argv[i + 1];
    if (flag == "--isa") {
      options.isa = parse_isa(value);
    } else if (flag == "--threads") {
      options.threads = static_cast<int>(parse_int(value));
    } else if (flag == "--kernel") {
      options.kernel = value;
    } else if (flag == "--m") {
      options.m.clear();
      for (std::string_view item : split_list(value, ',')) options.m.push_back(parse_int(item));
    } else if (flag == "--shape") {
      options.shapes.clear();
      for (std::string_view item : split_list(value, ',')) {
        const auto parts = split_list(item, 'x');
        if (parts.size() != 2) throw Error(ErrorKind::kInvalidArgument, "\"{}\" is not NxK", item);
        options.shapes.push_back({parse_int(parts[0]), parse_int(parts[1])});
      }
    } else if (flag == "--ring") {
      options.ring_bytes = parse_int(value) << 20;
    } else {
      throw Error(ErrorKind::kInvalidArgument,
                  "unknown flag {}; known: --isa --threads --kernel --m --shape --ring", flag);
    }
  }
  return options;
}

// A chain of dependent additions runs at one a clock.
double clock_hz(const ThreadPool& pool) {
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    constexpr int64_t kSteps = 20'000'000;
    uint64_t value = 1;
    const Stopwatch watch(pool);
    for (int64_t i = 0; i < kSteps; i += 8)
      __asm__ volatile(
          "add %0, %0\n add %0, %0\n add %0, %0\n add %0, %0\n"
          "add %0, %0\n add %0, %0\n add %0, %0\n add %0, %0\n"
          : "+r"(value));
    best = std::max(best, kSteps / watch.seconds());
  }
  return best;
}

// Of fused multiply-adds, two vectors a clock.
double float_operations_per_clock(Isa isa) {
  return isa >= Isa::kAvx512 ? 64 : isa == Isa::kAvx2 ? 32 : 8;
}

// The same random codes for every copy: only the addresses matter.
QuantizedTensor random_weight(WeightFormat format, Shape shape) {
  QuantizedTensor w = make_quantized(format, shape.n, shape.k, 128, true);
  std::mt19937 random(1);
  for (int64_t i = 0; i < w.data.size(); ++i) w.data.data<uint8_t>()[i] = random() & 0x77;
  if (format == WeightFormat::kInt4Group)
    for (int64_t i = 0; i < w.scales.size(); ++i) w.scales.data<uint16_t>()[i] = f32_to_f16(0.01f);
  else
    for (int64_t i = 0; i < w.scales.size(); ++i) w.scales.data<float>()[i] = 0.01f;
  return w;
}

struct Bounds {
  double bandwidth, clock, int8;
};

void measure(const LinearKernel& kernel, Shape shape, const Options& options, const Bounds& bounds,
             ThreadPool& pool) {
  QuantizedTensor quantized;
  Tensor dense;
  WeightView view;
  if (kernel.format == WeightFormat::kInt4Group || kernel.format == WeightFormat::kInt8Channel) {
    quantized = random_weight(kernel.format, shape);
    quantized.two_level = kernel.two_level;  // equal scales are multiples of one step
    view = quantized.view();
  } else {
    dense = Tensor::zeros(DType::kF32, {shape.n, shape.k});
    view = {.format = WeightFormat::kF32, .n = shape.n, .k = shape.k, .data = dense.data<void>()};
  }
  std::vector<PackedWeight> ring;
  double pack_seconds = 0;
  do {
    const Stopwatch watch(pool);
    ring.push_back(pack_linear(kernel, {&view, 1}, pool));
    pack_seconds += watch.seconds();
  } while (static_cast<int64_t>(ring.size() + 1) * ring[0].payload_bytes < options.ring_bytes);
  const double pack_rate = static_cast<double>(view.bytes()) * ring.size() / pack_seconds;
  fmt::print("{:<24} {:>6} x {:<5} {:8.2f} MB a copy, packed at {:.2f} GB/s\n", kernel.name,
             shape.n, shape.k, ring[0].payload_bytes / 1e6, pack_rate / 1e9);

  const int64_t most_m = *std::max_element(options.m.begin(), options.m.end());
  const int64_t q_stride = int8_row_stride(shape.k);
  const int64_t groups = ceil_div(shape.k, ring[0].group_size);
  // Aligned as the buffers of a Program are.
  Buffer x(4 * most_m * shape.k), y(4 * most_m * shape.n), q(most_m * q_stride);
  std::fill_n(x.as<float>(), most_m * shape.k, 0.5f);
  // What is in the tiles decides what power they take, and so their clock.
  std::mt19937 random(2);
  for (int64_t i = 0; i < q.bytes(); ++i)
    q.as<int8_t>()[i] = static_cast<int8_t>(static_cast<int>(random() % 121) - 60);
  std::vector<float> scales(most_m, 0.01f);
  std::vector<int32_t> sums(most_m * groups, 3);
  for (int64_t m : options.m) {
    Buffer scratch(std::max<int64_t>(1, pool.size() * kernel.scratch_bytes(ring[0], m)));
    LinearArgs args{
        .m = m, .x = x.as<float>(), .x_stride = shape.k, .y = y.as<float>(), .y_stride = shape.n};
    args.q = {
        .q = q.as<int8_t>(), .stride = q_stride, .scale = scales.data(), .group_sums = sums.data()};
    args.q.group_size = ring[0].group_size;
    args.scratch = scratch.as<std::byte>();
    // A sample is a run of calls inside one task, as in a forward pass: at least 2 ms, at most one
    // turn of the ring.
    size_t next = 0;
    const auto calls = [&](int64_t count) {
      const Stopwatch watch(pool);
      pool.run([&](const Worker& worker) {
        LinearArgs mine = args;
        for (int64_t i = 0; i < count; ++i) {
          mine.weight = &ring[(next + i) % ring.size()];
          kernel.run(mine, worker);
          pool.barrier();
        }
      });
      next += count;
      return watch.seconds() / static_cast<double>(count);
    };
    const double first = calls(1);
    const int64_t count = std::clamp<int64_t>(static_cast<int64_t>(2e-3 / first), 1, ring.size());
    std::vector<double> samples;
    const Stopwatch watch(pool);
    while (samples.size() < 5 || (samples.size() < 40 && watch.seconds() < 0.25))
      samples.push_back(calls(count));
    std::sort(samples.begin(), samples.end());
    const double median = samples[samples.size() / 2];
    const double best = samples[0];
    const double operations = 2.0 * static_cast<double>(m * shape.n * shape.k) / best;
    const double bytes = static_cast<double>(ring[0].payload_bytes) / best;
    const double peak = kernel.activation == Activation::kInt8 ? bounds.int8
                        : kernel.activation_error > 0
                            ? bounds.int8 / 2
                            : float_operations_per_clock(kernel.isa) * bounds.clock * pool.size();
    fmt::print(
        "   M = {:<4} {:10.1f} us (median {:.1f}) {:8.1f} GOP/s {:7.2f} GB/s {:5.0f} % of read "
        "bandwidth "
        "{:5.0f} % of peak\n",
        m, best * 1e6, median * 1e6, operations / 1e9, bytes / 1e9, 100 * bytes / bounds.bandwidth,
        100 * operations / peak);
    std::fflush(stdout);
  }
}

void bench(const Options& options) {
  ThreadPool pool(options.threads);
  const Bounds bounds{cold_read_bandwidth(pool), clock_hz(pool), int8_peak(options.isa, pool)};
  fmt::print(
      "{} threads ({}), cold read {:.1f} GB/s, {:.2f} GHz, int8 multiplications {:.0f} GOP/s\n",
      pool.size(), placement(), bounds.bandwidth / 1e9, bounds.clock / 1e9, bounds.int8 / 1e9);
  for (const LinearKernel& kernel : linear_kernels()) {
    if (kernel.isa != options.isa || kernel.name.find(options.kernel) == std::string_view::npos)
      continue;
    for (Shape shape : options.shapes) measure(kernel, shape, options, bounds, pool);
  }
}

}  // namespace
}  // namespace whit::cpu

int main(int argc, char** argv) {
  try {
    whit::cpu::bench(whit::cpu::parse(argc, argv));
    return 0;
  } catch (const whit::Error& error) {
    fmt::print(stderr, "bench_kernels: {}\n", error.what());
    return exit_code(error.kind());
  }
}
