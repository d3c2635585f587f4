#include "runtime/batch_generator.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/progress.h"

namespace whit {
namespace {

// Bytes that the keys and values of the sequences decoding together may take.
constexpr int64_t kCacheBytes = int64_t{384} << 20;

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a stream for each sequence from one seed.
class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t stream)
      : state_(seed * 0x9e3779b97f4a7c15u + mix(stream + 1)) {}
  double uniform() {
    return static_cast<double>(mix(state_ += 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
  }

 private:
  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

// An index drawn from softmax(logits / temperature).
int32_t draw(const float* logits, int64_t vocab, double temperature, double uniform) {
  const float inverse = static_cast<float>(1 / temperature);
  const float largest = *std::max_element(logits, logits + vocab);
  // Partial sums of blocks first: the second pass reads one block only.
  constexpr int64_t kBlock = 1024;
  std::vector<double> sums(ceil_div(vocab, kBlock));
  double total = 0;
  for (size_t block = 0; block < sums.size(); ++block) {
    const int64_t begin = static_cast<int64_t>(block) * kBlock,
                  end = std::min(begin + kBlock, vocab);
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += std::exp((logits[i] - largest) * inverse);
    sums[block] = sum;
    total += sum;
  }
  double left = uniform * total;
  size_t block = 0;
  while (block + 1 < sums.size() && left >= sums[block]) left -= sums[block++];
  int64_t i = static_cast<int64_t>(block) * kBlock;
  const int64_t last = std::min(i + kBlock, vocab) - 1;
  for (; i < last; ++i) {
    left -= std::exp((logits[i] - largest) * inverse);
    if (left < 0) break;
  }
  return static_cast<int32_t>(i);
}

struct Sequence {
  std::vector<int32_t> ids;
  int64_t fed = 0;         // of ids, in the cache
  size_t next_prompt = 0;  // what follows an end of sequence
  RandomStream random;
};

// A group of sequences that share a cache, from empty to full length.
class Group {
 public:
  Group(Executor& executor, std::span<const std::vector<int32_t>> prompts,
        const BatchGenerationOptions& options, int64_t first, int64_t count)
      : executor_(executor),
        prompts_(prompts),
        options_(options),
        cache_(executor.make_cache(count, options.length, options.kv_dtype)) {
    for (int64_t i = first; i < first + count; ++i) {
      sequences_.push_back({{},
                            0,
                            static_cast<size_t>(i) % prompts.size(),
                            RandomStream(options.seed, static_cast<uint64_t>(i))});
      append_prompt(sequences_.back());
    }
  }

  // One step: prompts' tokens and drawn ones alike, as many as fit. False once all sequences are
  // full.
  bool step() {
    std::vector<int32_t> ids, last_rows;
    std::vector<int64_t> starts, counts;
    std::vector<Sequence*> drawing;
    int64_t room = executor_.options().max_tokens, waiting = 0;
    for (const Sequence& sequence : sequences_) waiting += full(sequence) ? 0 : 1;
    if (waiting == 0) return false;
    for (Sequence& sequence : sequences_) {
      int64_t count = 0;
      if (!full(sequence)) {
        // Every sequence behind this one keeps room for a token of its own.
        --waiting;
        count = std::clamp<int64_t>(static_cast<int64_t>(sequence.ids.size()) - sequence.fed, 0,
                                    std::max<int64_t>(room - waiting, 0));
      }
      starts.push_back(sequence.fed);
      counts.push_back(count);
      ids.insert(ids.end(), sequence.ids.begin() + sequence.fed,
                 sequence.ids.begin() + sequence.fed + count);
      sequence.fed += count;
      room -= count;
      if (count > 0 && sequence.fed == static_cast<int64_t>(sequence.ids.size())) {
        last_rows.push_back(static_cast<int32_t>(ids.size()) - 1);
        drawing.push_back(&sequence);
      }
    }
    const ContiguousBatch batch(starts, counts, cache_.page_tokens());
    executor_.step(ids, batch.view(), cache_);
    if (!drawing.empty()) draw_next(last_rows, drawing);
    return true;
  }

  int64_t tokens() const {
    int64_t total = 0;
    for (const Sequence& sequence : sequences_) total += static_cast<int64_t>(sequence.ids.size());
    return total;
  }
  const std::vector<Sequence>& sequences() const { return sequences_; }

 private:
  bool full(const Sequence& sequence) const {
    return static_cast<int64_t>(sequence.ids.size()) == options_.length;
  }

  void append_prompt(Sequence& sequence) {
    const std::vector<int32_t>& prompt = prompts_[sequence.next_prompt];
    const int64_t room = options_.length - static_cast<int64_t>(sequence.ids.size());
    sequence.ids.insert(
        sequence.ids.end(), prompt.begin(),
        prompt.begin() + std::min<int64_t>(room, static_cast<int64_t>(prompt.size())));
    // A stride that shares no factor with the usual counts: sequences do not follow one another's
    // prompts.
    sequence.next_prompt = (sequence.next_prompt + 61) % prompts_.size();
  }

  void draw_next(std::span<const int32_t> rows, std::span<Sequence* const> drawing) {
    const int64_t vocab = executor_.config().vocab_size;
    const float* logits = executor_.logits(rows);
    std::vector<int32_t> drawn(rows.size());
    executor_.pool().parallel_for(
        static_cast<int64_t>(rows.size()), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            drawn[i] =
                draw(logits + i * vocab, vocab, options_.temperature, drawing[i]->random.uniform());
        });
    for (size_t i = 0; i < drawing.size(); ++i) {
      Sequence& sequence = *drawing[i];
      if (full(sequence)) continue;
      sequence.ids.push_back(drawn[i]);
      const bool ended = std::find(options_.stop_ids.begin(), options_.stop_ids.end(), drawn[i]) !=
                         options_.stop_ids.end();
      if (ended && !full(sequence)) append_prompt(sequence);
    }
  }

  Executor& executor_;
  std::span<const std::vector<int32_t>> prompts_;
  const BatchGenerationOptions& options_;
  KvCache cache_;
  std::vector<Sequence> sequences_;
};

int64_t sequences_together(const Executor& executor, const BatchGenerationOptions& options) {
  const int64_t bytes = executor.page_bytes(options.kv_dtype, round_up(options.length, 32));
  return std::clamp<int64_t>(
      kCacheBytes / std::max<int64_t>(bytes, 1), 1,
      std::min({options.sequences, kBatchSequences, executor.options().max_tokens,
                executor.options().max_logit_rows}));
}

}  // namespace

std::vector<int32_t> generate_batch(Executor& executor,
                                    std::span<const std::vector<int32_t>> prompts,
                                    const BatchGenerationOptions& options) {
  if (prompts.empty() ||
      std::any_of(prompts.begin(), prompts.end(), [](const auto& p) { return p.empty(); }))
    throw Error(ErrorKind::kInvalidArgument,
                "generating calibration text needs prompts of at least one token");
  if (options.sequences < 1 || options.length < 2 ||
      options.length > executor.options().max_context)
    throw Error(ErrorKind::kInvalidArgument,
                "{} sequences of {} tokens cannot be generated; the longest context is {}",
                options.sequences, options.length, executor.options().max_context);
  if (!(options.temperature > 0))
    throw Error(ErrorKind::kInvalidArgument,
                "the temperature of calibration text is {}; it must be above 0",
                options.temperature);
  Progress progress("writing calibration text, token", options.sequences * options.length);
  const int64_t together = sequences_together(executor, options);
  std::vector<int32_t> ids;
  ids.reserve(options.sequences * options.length);
  for (int64_t first = 0; first < options.sequences; first += together) {
    Group group(executor, prompts, options, first, std::min(together, options.sequences - first));
    do progress.update(static_cast<int64_t>(ids.size()) + group.tokens());
    while (group.step());
    for (const Sequence& sequence : group.sequences())
      ids.insert(ids.end(), sequence.ids.begin(), sequence.ids.end());
  }
  return ids;
}

}  // namespace whit
