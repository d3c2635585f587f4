#include "evaluate/bench.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "base/progress.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

BenchRow row_of(std::string test, int64_t batch, double tokens, std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  return {.test = std::move(test),
          .batch = batch,
          .tokens_per_s = tokens / median,
          .spread = (tokens / seconds.front() - tokens / seconds.back()) / 2};
}

void prefill(Executor& model, KvCache& cache, std::span<const int32_t> ids) {
  const int64_t chunk = model.options().max_tokens;
  for (int64_t first = 0; first < static_cast<int64_t>(ids.size()); first += chunk) {
    const auto part =
        ids.subspan(first, std::min<int64_t>(chunk, static_cast<int64_t>(ids.size()) - first));
    const int64_t starts[] = {first}, counts[] = {static_cast<int64_t>(part.size())};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    model.step(part, batch.view(), cache);
    if (first + chunk >= static_cast<int64_t>(ids.size())) {
      const int32_t last = static_cast<int32_t>(part.size()) - 1;
      model.logits({&last, 1});
    }
  }
}

// The first `depth` tokens of each of `batch` sequences.
void fill(Executor& model, KvCache& cache, int64_t batch, int64_t depth) {
  const int64_t chunk = model.options().max_tokens;
  std::vector<int32_t> ids;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t first = 0; first < depth; first += chunk) {
      std::vector<int64_t> starts(batch, 0), counts(batch, 0);
      starts[b] = first;
      counts[b] = std::min(chunk, depth - first);
      ids.clear();
      for (int64_t i = first; i < first + counts[b]; ++i)
        ids.push_back(static_cast<int32_t>((i * 7919 + 13) % model.config().vocab_size));
      const ContiguousBatch view(starts, counts, cache.page_tokens());
      model.step(ids, view.view(), cache);
    }
}

// `steps` tokens of each of `batch` sequences behind `depth` others; every next token is the
// argmax.
void decode(Executor& model, KvCache& cache, int64_t batch, int64_t depth, int64_t steps) {
  std::vector<int32_t> ids(batch, 1 % static_cast<int32_t>(model.config().vocab_size)), rows(batch);
  for (int64_t b = 0; b < batch; ++b) rows[b] = static_cast<int32_t>(b);
  const std::vector<int64_t> counts(batch, 1);
  for (int64_t step = 0; step < steps; ++step) {
    const std::vector<int64_t> starts(batch, depth + step);
    const ContiguousBatch view(starts, counts, cache.page_tokens());
    model.step(ids, view.view(), cache);
    model.argmax(rows, ids);
  }
}

// KV bytes that an average step of decode() reads.
double kv_bytes(const KvCache& cache, int64_t depth, int64_t steps) {
  // All sequences' pages have one length.
  return static_cast<double>(cache.bytes()) / static_cast<double>(cache.page_tokens()) *
         (static_cast<double>(depth) + static_cast<double>(steps) / 2);
}

}  // namespace

Json to_json(const BenchRow& row) {
  return {{"test", row.test},
          {"batch", row.batch},
          {"tokens_per_s", row.tokens_per_s},
          {"spread", row.spread},
          {"percent_of_roofline", row.percent_of_roofline},
          {"percent_of_int8_peak", row.percent_of_int8_peak},
          {"barriers_per_step", row.barriers_per_step}};
}

std::vector<BenchRow> bench(Executor& model, const BenchOptions& options,
                            const MachineLimits& limits) {
  std::vector<BenchRow> rows;
  Progress progress("benchmarking",
                    static_cast<int64_t>(options.prompts.size() +
                                         options.generations.size() * options.batches.size()));
  for (const int64_t length : options.prompts) {
    KvCache cache = model.make_cache(1, length, options.kv_dtype);
    std::vector<int32_t> ids(length);
    for (int64_t i = 0; i < length; ++i)
      ids[i] = static_cast<int32_t>((i * 7919 + 13) % model.config().vocab_size);
    prefill(model, cache, ids);
    std::vector<double> seconds;
    for (int r = 0; r < options.repetitions; ++r)
      seconds.push_back(seconds_of([&] { prefill(model, cache, ids); }));
    BenchRow row =
        row_of(fmt::format("pp{}", length), 1, static_cast<double>(length), std::move(seconds));
    if (limits.int8_operations_per_s > 0)
      row.percent_of_int8_peak =
          100 * row.tokens_per_s * model.operations_per_token() / limits.int8_operations_per_s;
    row.barriers_per_step = model.barriers(std::min(length, model.options().max_tokens));
    rows.push_back(std::move(row));
    progress.update(static_cast<int64_t>(rows.size()));
  }
  for (const int64_t length : options.generations)
    for (const int64_t batch : options.batches) {
      KvCache cache = model.make_cache(batch, options.depth + length, options.kv_dtype);
      fill(model, cache, batch, options.depth);
      decode(model, cache, batch, options.depth, std::min<int64_t>(length, 16));
      std::vector<double> seconds;
      for (int r = 0; r < options.repetitions; ++r)
        seconds.push_back(seconds_of([&] { decode(model, cache, batch, options.depth, length); }));
      const std::string test = options.depth == 0 ? fmt::format("tg{}", length)
                                                  : fmt::format("tg{} d{}", length, options.depth);
      BenchRow row = row_of(test, batch, static_cast<double>(batch * length), std::move(seconds));
      const double bytes =
          static_cast<double>(model.weight_bytes()) + kv_bytes(cache, options.depth, length);
      if (limits.read_bytes_per_s > 0)
        row.percent_of_roofline =
            100 * row.tokens_per_s / static_cast<double>(batch) * bytes / limits.read_bytes_per_s;
      row.barriers_per_step = model.barriers(batch);
      rows.push_back(row);
      progress.update(static_cast<int64_t>(rows.size()));
    }
  return rows;
}

}  // namespace whit
