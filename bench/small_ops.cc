// Times of attention and the small operations of every ISA that this CPU has, on SmolLM2-135M's
// shapes.
//   bench_small_ops [threads, default 1] [ISA, default all] [keys and values, default f16]
// 21 runs after a warm-up. Decode runs over parts of a ring of caches of 96 MiB in turn, so that no
// run finds its keys in cache. Attention counts the 4·Dh flops of every visible (query, key) pair;
// its peak is what a loop of independent 8-lane multiply-adds reaches.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"
#include "ops/kv_format.h"

namespace whit::cpu {
namespace {

struct Seconds {
  double median, best;
};

Seconds time_of(const std::function<void()>& body, int runs = 21) {
  using Clock = std::chrono::steady_clock;
  body();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const auto start = Clock::now();
    body();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return {times[runs / 2], times[0]};
}

// One call of something too short for the clock.
Seconds time_of_many(const std::function<void()>& body) {
  const Seconds all = time_of([&] {
    for (int i = 0; i < 1000; ++i) body();
  });
  return {all.median / 1000, all.best / 1000};
}

// GFLOP/s of one thread: twelve independent chains of 8-lane multiply-adds (4 cycles of latency, 2
// a cycle).
double fma_peak() {
  constexpr int kChains = 12, kSteps = 1 << 20;
  const Seconds seconds = time_of([&] {
    for (int i = 0; i < kSteps; ++i)
      asm volatile(
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm0\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm1\n\t"
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm2\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm3\n\t"
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm4\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm5\n\t"
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm6\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm7\n\t"
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm8\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm9\n\t"
          "vfmadd231ps %%ymm12, %%ymm13, %%ymm10\n\tvfmadd231ps %%ymm12, %%ymm13, %%ymm11" ::
              : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                "xmm10", "xmm11");
  });
  return 2.0 * 8 * kChains * kSteps / seconds.best * 1e-9;
}

constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64, kPage = 64;
KvType kv_type = KvType::kF16;
int64_t page_bytes() {
  const int64_t blocks = kKvHeads * (kPage / kKvBlockTokens);
  return blocks * std::max(key_block_bytes(kv_type, KeyLayout::kToken, kHeadDim),
                           value_block_bytes(kv_type, kHeadDim));
}

struct Problem {
  Problem(int64_t sequences, int64_t context, int64_t queries, uint32_t seed)
      : pages_each((context + kPage - 1) / kPage) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int64_t pages = sequences * pages_each;
    k = Buffer(pages * page_bytes());
    v = Buffer(pages * page_bytes());
    const int64_t rows = sequences * queries;
    q.resize(rows * kHeads * kHeadDim);
    for (float& value : q) value = normal(random);
    out.resize(q.size());
    for (int64_t page = 0; page < pages; ++page) table.push_back(static_cast<int32_t>(page));
    for (int64_t b = 0; b <= sequences; ++b)
      query_start.push_back(static_cast<int32_t>(b * queries));
    context_len.assign(sequences, static_cast<int32_t>(context));
    // The first page from random numbers, all others like it.
    std::vector<float> numbers(kPage * kKvHeads * kHeadDim);
    for (float& value : numbers) value = normal(random);
    const int32_t start[2] = {0, kPage}, length[1] = {kPage};
    AttentionArgs all = args();
    all.batch = {.t = kPage,
                 .b = 1,
                 .query_start = start,
                 .context_len = length,
                 .block_table = table.data(),
                 .max_blocks = 1};
    small_ops_table().back().kv_write({.k = numbers.data(),
                                       .k_stride = kKvHeads * kHeadDim,
                                       .v = numbers.data(),
                                       .v_stride = kKvHeads * kHeadDim,
                                       .batch = all.batch,
                                       .cache = all.cache},
                                      {.index = 0, .count = 1});
    for (int64_t page = 1; page < pages; ++page) {
      std::memcpy(k.as<std::byte>() + page * page_bytes(), k.as<void>(), page_bytes());
      std::memcpy(v.as<std::byte>() + page * page_bytes(), v.as<void>(), page_bytes());
    }
  }

  AttentionArgs args() {
    return {.q = q.data(),
            .q_stride = kHeads * kHeadDim,
            .heads = kHeads,
            .scale = 0.125f,
            .batch = {.t = query_start.back(),
                      .b = static_cast<int64_t>(context_len.size()),
                      .query_start = query_start.data(),
                      .context_len = context_len.data(),
                      .block_table = table.data(),
                      .max_blocks = pages_each},
            .cache = {.type = kv_type,
                      .k = k.as<void>(),
                      .v = v.as<void>(),
                      .k_page_bytes = page_bytes(),
                      .v_page_bytes = page_bytes(),
                      .page_tokens = kPage,
                      .kv_heads = kKvHeads,
                      .head_dim = kHeadDim},
            .out = out.data(),
            .out_stride = kHeads * kHeadDim};
  }

  int64_t pages_each;
  Buffer k, v;
  std::vector<float> q, out;
  std::vector<int32_t> table, query_start, context_len;
};

// `rate` is the work of one call in GFLOP or GB; 0: none.
void report(std::string_view what, int64_t size, Seconds seconds, double rate = 0,
            std::string_view unit = "", double peak = 0) {
  fmt::print("  {:18} {:6} {:11.2f} us median {:11.2f} best", what, size, seconds.median * 1e6,
             seconds.best * 1e6);
  if (rate > 0) fmt::print(" {:7.1f} {:7.1f} {}", rate / seconds.median, rate / seconds.best, unit);
  if (peak > 0) fmt::print(" {:3.0f} % of {:.0f}", 100 * rate / seconds.best / peak, peak);
  fmt::print("\n");
}

void bench_attention(const SmallOps& ops, ThreadPool& pool, double peak) {
  const auto attend = [&](const AttentionArgs& args) {
    pool.run([&](const Worker& worker) {
      ops.attention(args, worker);
      if (!ops.attention_in_parts(args, worker.count)) return;
      pool.barrier();
      ops.attention_merge(args, worker);
    });
  };
  for (const int64_t tokens : {512, 2048}) {
    Problem problem(1, tokens, tokens, 1);
    AttentionArgs args = problem.args();
    Buffer scratch(ops.attention_scratch_bytes(args) * pool.size());
    args.scratch = scratch.as<std::byte>();
    const double flops = 4.0 * kHeadDim * kHeads * static_cast<double>(tokens * (tokens + 1) / 2);
    report("attention prefill", tokens, time_of([&] { attend(args); }), flops * 1e-9, "GFLOP/s",
           ops.isa == Isa::kAvx2 ? peak * pool.size() : 0);
  }
  for (const int64_t context : {256, 2048}) {
    const int64_t bytes = 2 * context / kPage * page_bytes(), copies = (int64_t{96} << 20) / bytes;
    Problem problem(copies, context, 1, 2);
    const AttentionArgs all = problem.args();
    Buffer scratch(ops.attention_scratch_bytes(all) * pool.size());
    const int64_t part = std::max<int64_t>(1, copies / 20);
    const int32_t one[2] = {0, 1};
    int64_t next = 0;
    Seconds seconds = time_of([&] {
      for (int64_t i = 0; i < part; ++i, next = (next + 1) % copies) {
        AttentionArgs args = all;
        args.scratch = scratch.as<std::byte>();
        args.q += next * args.q_stride;
        args.out += next * args.out_stride;
        args.batch.t = args.batch.b = 1;
        args.batch.query_start = one;
        args.batch.block_table += next * args.batch.max_blocks;
        attend(args);
      }
    });
    seconds.median /= static_cast<double>(part);
    seconds.best /= static_cast<double>(part);
    report("attention decode", context, seconds, static_cast<double>(bytes) * 1e-9, "GB/s");
  }
}

void bench_rows(const SmallOps& ops, int64_t d) {
  std::vector<float> x(d), up(d), weight(d, 1.0f), y(d);
  for (int64_t i = 0; i < d; ++i) x[i] = up[i] = std::sin(static_cast<float>(i));
  const int64_t stride = (d + 63) / 64 * 64;
  std::vector<int8_t> codes(stride);
  std::vector<int32_t> sums(d);
  float scale;
  const Int8Rows q{.q = codes.data(),
                   .stride = stride,
                   .scale = &scale,
                   .group_sums = sums.data(),
                   .group_size = 128};
  const auto row = [&](std::string_view what, const std::function<void()>& body) {
    report(what, d, time_of_many(body));
  };
  RmsNormArgs norm{.x = x.data(),
                   .x_stride = d,
                   .weight = weight.data(),
                   .eps = 1e-5f,
                   .m = 1,
                   .d = d,
                   .y = y.data(),
                   .y_stride = d};
  row("rms_norm", [&] { ops.rms_norm(norm, Worker{}); });
  norm.y = nullptr;
  norm.q = q;
  row("rms_norm to int8", [&] { ops.rms_norm(norm, Worker{}); });
  row("quantize",
      [&] { ops.quantize({.x = x.data(), .x_stride = d, .m = 1, .k = d, .q = q}, Worker{}); });
  SiluMulArgs silu{.gate = x.data(),
                   .gate_stride = d,
                   .up = up.data(),
                   .up_stride = d,
                   .m = 1,
                   .f = d,
                   .y = y.data(),
                   .y_stride = d};
  row("silu_mul", [&] { ops.silu_mul(silu, Worker{}); });
  silu.y = nullptr;
  silu.q = q;
  row("silu_mul to int8", [&] { ops.silu_mul(silu, Worker{}); });
  row("add",
      [&] { ops.add({.x = x.data(), .r = up.data(), .y = y.data(), .count = d}, Worker{}); });
}

void bench_kv_and_logits(const SmallOps& ops) {
  Problem problem(1, 512, 512, 3);
  std::vector<float> k(512 * kKvHeads * kHeadDim, 1.0f);
  std::vector<int32_t> slots(512);
  for (int i = 0; i < 512; ++i) slots[i] = i;
  KvWriteArgs write{.k = k.data(),
                    .k_stride = kKvHeads * kHeadDim,
                    .v = k.data(),
                    .v_stride = kKvHeads * kHeadDim,
                    .batch = problem.args().batch,
                    .cache = problem.args().cache};
  write.batch.slots = slots.data();
  report("kv_write", 512, time_of([&] { ops.kv_write(write, Worker{}); }));
  const int64_t vocab = 49152;
  std::vector<float> logits(vocab);
  for (int64_t i = 0; i < vocab; ++i) logits[i] = 8 * std::sin(static_cast<float>(i));
  const float lse = ops.log_sum_exp(logits.data(), vocab);
  volatile double sink = 0;
  report("argmax", vocab, time_of([&] { sink = sink + ops.argmax(logits.data(), vocab); }));
  report("log_sum_exp", vocab,
         time_of([&] { sink = sink + ops.log_sum_exp(logits.data(), vocab); }));
  report("kl_divergence", vocab, time_of([&] {
           sink = sink + ops.kl_divergence(logits.data(), lse, logits.data(), lse, vocab);
         }));
}

}  // namespace
}  // namespace whit::cpu

int main(int argc, char** argv) {
  using namespace whit;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 1);
  const double peak = cpu::fma_peak();
  fmt::print("{} threads; {:.1f} GFLOP/s of 8-lane multiply-adds a thread\n", pool.size(), peak);
  if (argc > 3) cpu::kv_type = parse_kv_type(argv[3]);
  const cpu::Isa only = cpu::parse_isa(argc > 2 ? argv[2] : "portable");
  for (const cpu::SmallOps& ops : cpu::small_ops_table()) {
    if (ops.isa > cpu::detected_isa() || (argc > 2 && ops.isa != only)) continue;
    fmt::print("{}\n", ops.name);
    cpu::bench_attention(ops, pool, peak);
    for (const int64_t d : {576, 1536}) cpu::bench_rows(ops, d);
    cpu::bench_kv_and_logits(ops);
  }
}
