// Decode and prefill attention of the CUDA backend at Llama-3-8B's heads (32 query, 8 key/value, of
// 128), paged, from device memory.
//
//   bench_cuda_attention [BANDWIDTH in GB/s, default 3090] [decode | prefill]
//
// Each time is a replay of one graph of several launches over caches that together exceed the L2
// several times, divided by their number: median of 25. %BW: keys and values read once, over that
// time, of the bandwidth given. Prefill: causal flop (4 · Dh a visible pair) a second.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/small_ops.h"

namespace whit::cuda {
namespace {

constexpr int64_t kHeads = 32, kKvHeads = 8, kDim = 128, kPage = 32;
constexpr int64_t kRing = int64_t{400} << 20;  // bytes of caches that a graph goes through

struct Bench {
  Device& device;
  double bandwidth;

  // Random bytes: finite as bf16 (the exponent is cut) and as int8 codes.
  DeviceBuffer random(int64_t bytes) {
    static std::vector<uint16_t> values = [] {
      std::mt19937 generator(1);
      std::vector<uint16_t> made(1 << 22);
      for (uint16_t& value : made) value = static_cast<uint16_t>((generator() & 0xbfff) | 0x3000);
      return made;
    }();
    DeviceBuffer buffer(device, bytes, "the benchmark");
    const auto most = static_cast<int64_t>(values.size()) * 2;
    for (int64_t at = 0; at < bytes; at += most)
      device.upload_and_wait(buffer.as<char>() + at, values.data(), std::min(most, bytes - at));
    return buffer;
  }
  template <typename T>
  DeviceBuffer copy(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    DeviceBuffer buffer(device, bytes, "the benchmark");
    device.upload_and_wait(buffer.as<void>(), values.data(), bytes);
    return buffer;
  }

  double median_us(Graph& graph, int64_t launches) {
    std::vector<double> times;
    for (int i = 0; i < 28; ++i) {
      const auto start = std::chrono::steady_clock::now();
      device.run(graph);
      device.wait();
      times.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
              .count());
    }
    std::sort(times.begin() + 3, times.end());
    return times[3 + 25 / 2] / static_cast<double>(launches);
  }

  void measure(KvStorage storage, int64_t batch, int64_t context, int64_t tokens) {
    const bool coded = storage != KvStorage::kBf16;
    const char* name = storage == KvStorage::kBf16   ? "bf16"
                       : storage == KvStorage::kInt8 ? "int8"
                                                     : "fp8";
    const int64_t blocks = context / kPage, pages = batch * blocks;
    const int64_t cache_values = pages * kPage * kKvHeads * kDim;
    const int64_t cache_bytes = 2 * cache_values * (coded ? 1 : 2);
    const int64_t copies = std::clamp<int64_t>(kRing / cache_bytes + 1, 2, 40);
    const int64_t launches = tokens > 1 ? copies : std::max<int64_t>(copies, 24);
    std::vector<DeviceBuffer> memory;
    std::vector<DeviceKv> caches;
    for (int64_t i = 0; i < copies; ++i) {
      DeviceKv cache{
          .storage = storage, .page_tokens = kPage, .kv_heads = kKvHeads, .head_dim = kDim};
      for (void** where : {&cache.k, &cache.v}) {
        memory.push_back(random(cache_values * (coded ? 1 : 2)));
        *where = memory.back().as<void>();
      }
      if (coded)
        for (float** where : {&cache.k_scales, &cache.v_scales}) {
          memory.push_back(copy(std::vector<float>(pages * kPage * kKvHeads, 0.01f)));
          *where = memory.back().as<float>();
        }
      caches.push_back(cache);
    }
    std::vector<int32_t> starts, lengths(batch, static_cast<int32_t>(context)), table(pages), tiles;
    for (int64_t b = 0; b <= batch; ++b) starts.push_back(static_cast<int32_t>(b * tokens));
    for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(i);
    std::shuffle(table.begin(), table.end(), std::mt19937(3));
    const int64_t rows = tokens * kHeads / kKvHeads;
    const bool decode = rows <= kDecodeRows;
    for (int64_t b = 0; b < batch && !decode; ++b)
      for (int64_t row = 0; row < rows; row += kPrefillRows) {
        tiles.push_back(static_cast<int32_t>(b));
        tiles.push_back(static_cast<int32_t>(row));
      }
    const int64_t chunks = decode ? attention_chunks(context, tokens, 0) : 0;
    DeviceBuffer q = random(batch * tokens * kHeads * kDim * 2), out = random(q.bytes());
    DeviceBuffer query_start = copy(starts), context_len = copy(lengths), block_table = copy(table);
    DeviceBuffer tile_list = copy(tiles);
    std::vector<int32_t> firsts;
    const int64_t own_chunks = (context + kChunk - 1) / kChunk;
    for (int64_t b = 0; b < batch; ++b) firsts.push_back(static_cast<int32_t>(b * own_chunks));
    DeviceBuffer widened_first = copy(firsts);
    DeviceBuffer widened(
        device, attention_widened_bytes(decode || !coded ? 1 : batch * own_chunks, kKvHeads, kDim),
        "the benchmark");
    DeviceBuffer partials(
        device, attention_partial_bytes(batch, kKvHeads, std::max<int64_t>(chunks, 1), kDim), "");
    DeviceBuffer counters = copy(std::vector<int32_t>(batch * kKvHeads));
    const auto enqueue = [&] {
      for (int64_t i = 0; i < launches; ++i)
        small_ops().attention({.q = q.as<void>(),
                               .q_stride = kHeads * kDim,
                               .heads = kHeads,
                               .scale = 1 / std::sqrt(static_cast<float>(kDim)),
                               .sliding_window = 0,
                               .batch = {.t = batch * tokens,
                                         .b = batch,
                                         .query_start = query_start.as<int32_t>(),
                                         .context_len = context_len.as<int32_t>(),
                                         .block_table = block_table.as<int32_t>(),
                                         .max_blocks = blocks},
                               .cache = caches[i % copies],
                               .out = out.as<void>(),
                               .out_stride = kHeads * kDim,
                               .max_chunks = chunks,
                               .partials = partials.as<float>(),
                               .counters = counters.as<int32_t>(),
                               .tiles = tile_list.as<int32_t>(),
                               .tile_count = static_cast<int64_t>(tiles.size()) / 2,
                               .widened = decode || !coded ? nullptr : widened.as<void>(),
                               .widened_first = widened_first.as<int32_t>(),
                               .widened_chunks = batch * own_chunks,
                               .widened_most = own_chunks},
                              device.stream());
    };
    enqueue();
    device.wait();
    const auto graph = device.record(enqueue);
    const double us = median_us(*graph, launches);
    if (decode)
      fmt::print("| decode {} | {} | {} | {:.1f} | {:.0f} %BW |\n", name, batch, context, us,
                 100 * static_cast<double>(cache_bytes) / (bandwidth * 1e3) / us);
    else
      fmt::print("| prefill {} | {} | {} | {:.1f} | {:.0f} TFLOP/s |\n", name, batch, context, us,
                 static_cast<double>(batch * kHeads * 4 * kDim) *
                     (static_cast<double>(context) * static_cast<double>(tokens) -
                      static_cast<double>(tokens) * static_cast<double>(tokens - 1) / 2) /
                     us / 1e6);
    std::fflush(stdout);
  }
};

int run(double bandwidth, std::string_view only) {
  const auto device = open_device();
  Bench bench{*device, bandwidth};
  fmt::print("| attention | batch | context | us | |\n|---|--:|--:|--:|--:|\n");
  for (const KvStorage storage : {KvStorage::kBf16, KvStorage::kInt8, KvStorage::kFp8}) {
    if (only != "prefill") {
      for (const int64_t batch : {1, 16, 64}) bench.measure(storage, batch, 4096, 1);
      for (const int64_t context : {1024, 32768}) bench.measure(storage, 1, context, 1);
    }
    if (only != "decode")
      for (const int64_t tokens : {1024, 4096, 16384}) bench.measure(storage, 1, tokens, tokens);
  }
  return 0;
}

}  // namespace
}  // namespace whit::cuda

int main(int argc, char** argv) {
  try {
    return whit::cuda::run(argc > 1 ? std::stod(argv[1]) : 3090, argc > 2 ? argv[2] : "");
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_cuda_attention: {}\n", error.what());
    return 1;
  }
}
