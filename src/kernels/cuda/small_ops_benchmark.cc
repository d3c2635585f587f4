#include "kernels/cuda/small_ops_benchmark.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

namespace whit::cuda {
namespace {

constexpr const char* kPurpose = "the benchmark";
constexpr int64_t kPage = 32;                    // tokens
constexpr int64_t kCaches = int64_t{400} << 20;  // bytes of caches that a graph goes through
constexpr int64_t kRowLaunches = 100;

// Where a kernel of rows writes, and room for it.
struct Out {
  DeviceBuffer values, scales;
  RowsOut rows;

  Out(Device& device, int64_t t, int64_t width, bool int8)
      : values(device, t * width * (int8 ? 1 : 2), kPurpose), scales(device, t * 4, kPurpose) {
    if (int8)
      rows.q = values.as<int8_t>(), rows.q_stride = width, rows.scale = scales.as<float>();
    else
      rows.y = values.as<void>(), rows.y_stride = width;
  }
  double bytes() const { return static_cast<double>(values.bytes()); }
};

}  // namespace

// Random bytes: finite as bf16 and as f32 (the exponent is cut) and as codes.
DeviceBuffer SmallOpsBenchmark::random(int64_t bytes) {
  static const std::vector<uint16_t> values = [] {
    std::mt19937 generator(1);
    std::vector<uint16_t> made(1 << 22);
    for (uint16_t& value : made) value = static_cast<uint16_t>((generator() & 0xbfff) | 0x3000);
    return made;
  }();
  DeviceBuffer buffer(device_, bytes, kPurpose);
  const auto most = static_cast<int64_t>(values.size()) * 2;
  for (int64_t at = 0; at < bytes; at += most)
    device_.upload_and_wait(buffer.as<char>() + at, values.data(), std::min(most, bytes - at));
  return buffer;
}

template <typename T>
DeviceBuffer SmallOpsBenchmark::copy(const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  DeviceBuffer buffer(device_, bytes, kPurpose);
  device_.upload_and_wait(buffer.as<void>(), values.data(), bytes);
  return buffer;
}

double SmallOpsBenchmark::median_us(int64_t launches, const std::function<void(int64_t)>& launch) {
  const auto enqueue = [&] {
    for (int64_t i = 0; i < launches; ++i) launch(i);
  };
  enqueue();  // what a first launch sets up cannot be recorded
  device_.wait();
  const auto graph = device_.record(enqueue);
  constexpr int kWarmUp = 3, kRuns = 25;
  std::vector<double> times;
  for (int i = 0; i < kWarmUp + kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    device_.run(*graph);
    device_.wait();
    times.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
            .count());
  }
  std::sort(times.begin() + kWarmUp, times.end());
  return times[kWarmUp + kRuns / 2] / static_cast<double>(launches);
}

SmallOpTiming SmallOpsBenchmark::attention(const AttentionCase& c) {
  const bool coded = c.storage != KvStorage::kBf16;
  const int64_t blocks = (c.context + kPage - 1) / kPage, pages = c.batch * blocks;
  const int64_t cache_values = pages * kPage * c.kv_heads * c.head_dim;
  const int64_t copies = std::clamp<int64_t>(kCaches / c.cache_bytes() + 1, 2, 40);
  const int64_t launches = c.tokens > 1 ? copies : std::max<int64_t>(copies, 24);
  std::vector<DeviceBuffer> memory;
  std::vector<DeviceKv> caches;
  for (int64_t i = 0; i < copies; ++i) {
    DeviceKv cache{
        .storage = c.storage, .page_tokens = kPage, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
    for (void** where : {&cache.k, &cache.v}) {
      memory.push_back(random(cache_values * (coded ? 1 : 2)));
      *where = memory.back().as<void>();
    }
    if (coded)
      for (float** where : {&cache.k_scales, &cache.v_scales}) {
        memory.push_back(copy(std::vector<float>(pages * kPage * c.kv_heads, 0.01f)));
        *where = memory.back().as<float>();
      }
    caches.push_back(cache);
  }
  std::vector<int32_t> starts, lengths(c.batch, static_cast<int32_t>(c.context)), table(pages),
      tiles, firsts;
  for (int64_t b = 0; b <= c.batch; ++b) starts.push_back(static_cast<int32_t>(b * c.tokens));
  for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(i);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  const int64_t rows = c.tokens * c.heads / c.kv_heads;
  const bool decode = rows <= kDecodeRows;
  const int64_t own_chunks = (c.context + kChunk - 1) / kChunk;
  for (int64_t b = 0; b < c.batch; ++b) {
    firsts.push_back(static_cast<int32_t>(b * own_chunks));
    for (int64_t row = 0; row < rows && !decode; row += kPrefillRows) {
      tiles.push_back(static_cast<int32_t>(b));
      tiles.push_back(static_cast<int32_t>(row));
    }
  }
  const int64_t tile_count = std::ssize(tiles) / 2;
  if (tiles.empty()) tiles.push_back(0);
  const int64_t chunks = decode ? attention_chunks(c.context, c.tokens, 0) : 0;
  const int64_t row_width = c.heads * c.head_dim;
  const DeviceBuffer q = random(c.batch * c.tokens * row_width * 2), out = random(q.bytes());
  const DeviceBuffer query_start = copy(starts), context_len = copy(lengths),
                     block_table = copy(table), tile_list = copy(tiles),
                     widened_first = copy(firsts);
  const bool widens = coded && !decode;
  const DeviceBuffer widened(
      device_, attention_widened_bytes(widens ? c.batch * own_chunks : 1, c.kv_heads, c.head_dim),
      kPurpose);
  const DeviceBuffer partials(
      device_,
      attention_partial_bytes(c.batch, c.kv_heads, std::max<int64_t>(chunks, 1), c.head_dim),
      kPurpose);
  const DeviceBuffer counters = copy(std::vector<int32_t>(c.batch * c.kv_heads));
  SmallOpTiming timing;
  timing.us = median_us(launches, [&](int64_t i) {
    small_ops().attention({.q = q.as<void>(),
                           .q_stride = row_width,
                           .heads = c.heads,
                           .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
                           .sliding_window = 0,
                           .batch = {.t = c.batch * c.tokens,
                                     .b = c.batch,
                                     .query_start = query_start.as<int32_t>(),
                                     .context_len = context_len.as<int32_t>(),
                                     .block_table = block_table.as<int32_t>(),
                                     .max_blocks = blocks},
                           .cache = caches[i % copies],
                           .out = out.as<void>(),
                           .out_stride = row_width,
                           .max_chunks = chunks,
                           .partials = partials.as<float>(),
                           .counters = counters.as<int32_t>(),
                           .tiles = tile_list.as<int32_t>(),
                           .tile_count = tile_count,
                           .widened = widens ? widened.as<void>() : nullptr,
                           .widened_first = widened_first.as<int32_t>(),
                           .widened_chunks = c.batch * own_chunks,
                           .widened_most = own_chunks},
                          device_.stream());
  });
  timing.bytes = static_cast<double>(c.cache_bytes());
  const auto tokens = static_cast<double>(c.tokens);
  timing.operations = static_cast<double>(c.batch * c.heads * 4 * c.head_dim) *
                      (static_cast<double>(c.context) * tokens - tokens * (tokens - 1) / 2);
  return timing;
}

SmallOpTiming SmallOpsBenchmark::rms_norm(int64_t t, int64_t width, bool int8) {
  const DeviceBuffer x = random(t * width * 4), weight = random(width * 4);
  const Out out(device_, t, width, int8);
  const RmsNormArgs args{.x = x.as<float>(),
                         .rows = nullptr,
                         .weight = weight.as<float>(),
                         .eps = 1e-5f,
                         .t = t,
                         .d = width,
                         .out = out.rows};
  return {
      .us = median_us(kRowLaunches, [&](int64_t) { small_ops().rms_norm(args, device_.stream()); }),
      .bytes = static_cast<double>(x.bytes()) + out.bytes()};
}

SmallOpTiming SmallOpsBenchmark::silu_mul(int64_t t, int64_t width, bool int8) {
  const DeviceBuffer rows = random(t * width * 4);
  const Out out(device_, t, width, int8);
  const SiluMulArgs args{.gate = rows.as<uint16_t>(),
                         .gate_stride = 2 * width,
                         .up = rows.as<uint16_t>() + width,
                         .up_stride = 2 * width,
                         .t = t,
                         .f = width,
                         .out = out.rows};
  return {
      .us = median_us(kRowLaunches, [&](int64_t) { small_ops().silu_mul(args, device_.stream()); }),
      .bytes = static_cast<double>(rows.bytes()) + out.bytes()};
}

SmallOpTiming SmallOpsBenchmark::quantize(int64_t t, int64_t width) {
  const DeviceBuffer x = random(t * width * 2);
  const Out out(device_, t, width, true);
  const QuantizeArgs args{
      .x = x.as<void>(), .x_stride = width, .t = t, .k = width, .out = out.rows};
  return {
      .us = median_us(kRowLaunches, [&](int64_t) { small_ops().quantize(args, device_.stream()); }),
      .bytes = static_cast<double>(x.bytes()) + out.bytes()};
}

SmallOpTiming SmallOpsBenchmark::rope_kv_write(int64_t t, int64_t heads, int64_t kv_heads,
                                               int64_t head_dim) {
  const int64_t width = (heads + 2 * kv_heads) * head_dim, pages = t;
  const DeviceBuffer rows = random(t * width * 2), table = random(head_dim * 4);
  const DeviceBuffer k = random(pages * kPage * kv_heads * head_dim * 2), v = random(k.bytes());
  std::vector<int32_t> slots(t);
  for (int64_t i = 0; i < t; ++i) slots[i] = static_cast<int32_t>(i * kPage);
  const DeviceBuffer positions = copy(std::vector<int32_t>(t)), slot_list = copy(slots);
  const RopeKvArgs args{.q = rows.as<uint16_t>(),
                        .q_stride = width,
                        .k = rows.as<uint16_t>() + heads * head_dim,
                        .k_stride = width,
                        .v = rows.as<uint16_t>() + (heads + kv_heads) * head_dim,
                        .v_stride = width,
                        .heads = heads,
                        .cos = table.as<float>(),
                        .sin = table.as<float>(),
                        .batch = {.t = t,
                                  .b = t,
                                  .positions = positions.as<int32_t>(),
                                  .slots = slot_list.as<int32_t>()},
                        .cache = {.storage = KvStorage::kBf16,
                                  .k = k.as<void>(),
                                  .v = v.as<void>(),
                                  .page_tokens = kPage,
                                  .kv_heads = kv_heads,
                                  .head_dim = head_dim}};
  return {.us = median_us(kRowLaunches,
                          [&](int64_t) { small_ops().rope_kv_write(args, device_.stream()); }),
          .bytes = 2.0 * static_cast<double>(rows.bytes())};
}

}  // namespace whit::cuda
