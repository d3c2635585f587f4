// Speed of a whole model on the GPU: a prompt of some tokens a sequence, then decoding, the
// likeliest token each time. The model has the shape of Llama-3-8B or SmolLM2-135M and random
// weights, made here, so that nothing need be downloaded: speed does not depend on their values.
//
//   bench_cuda_model [--shape llama-3-8b|smollm2-135m]
//                    [--scheme w4a8|w4a8-2l|w4a16|w4afp8|w8a8|fp8|w8a16|bf16] [--kv bf16|int8|fp8]
//                    [--batch 1,64]
//                    [--prompt 1024] [--generate 128] [--layers 32] [--graphs on|off]
//
// w4a8-2l: scales of two levels. Groups are of 128, of SmolLM2 64. --layers: all of the shape's.
//
// Columns: tokens a second of the prompt and of decoding (median step), a step in microseconds at
// the median and the 90th percentile, what the host does between steps (also in the step), and the
// share of the step that reading weights and the cache once would take at `--bandwidth` GB/s (H100
// 3090, H200 4620, measured reads).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <sstream>

#include "engine/executor.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

// `layers`: 0 for all that the model has.
ModelConfig config_of(const std::string& shape, int64_t layers) {
  Json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"model_type", "llama"},
                 {"max_position_embeddings", 8192},
                 {"rms_norm_eps", 1e-5},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", false},
                 {"torch_dtype", "bfloat16"}};
  if (shape == "llama-3-8b")
    config.update({{"hidden_size", 4096},
                   {"intermediate_size", 14336},
                   {"num_hidden_layers", 32},
                   {"num_attention_heads", 32},
                   {"num_key_value_heads", 8},
                   {"vocab_size", 128256},
                   {"rope_theta", 500000.0}});
  else if (shape == "smollm2-135m")
    config.update({{"hidden_size", 576},
                   {"intermediate_size", 1536},
                   {"num_hidden_layers", 30},
                   {"num_attention_heads", 9},
                   {"num_key_value_heads", 3},
                   {"vocab_size", 49152},
                   {"rope_theta", 100000.0}});
  else
    throw Error(ErrorKind::kInvalidArgument, "unknown shape {}", shape);
  if (layers > 0) config["num_hidden_layers"] = layers;
  return ModelConfig::from_json(config, "the benchmark's config");
}

// Views of one block of random bytes: layers share it on the host, and have copies on the GPU.
class RandomWeights {
 public:
  RandomWeights(std::string scheme, const ModelConfig& config)
      : scheme_(std::move(scheme)),
        group_size_(config.hidden_size % 128 == 0 ? 128 : 64),
        bytes_(config.vocab_size * config.hidden_size * (scheme_ == "bf16" ? 2 : 1)),
        scales_(2 * config.intermediate_size * config.intermediate_size / group_size_ * 2),
        channel_scales_(config.vocab_size * 4) {
    std::mt19937_64 random(1);
    auto* words = bytes_.as<uint64_t>();
    for (int64_t i = 0; i < bytes_.bytes() / 8; ++i) words[i] = random();
    if (scheme_ == "fp8")  // no NaNs
      for (int64_t i = 0; i < bytes_.bytes() / 8; ++i) words[i] &= 0xbfbfbfbfbfbfbfbf;
    if (scheme_ == "bf16") {
      // Values in ±2⁻⁶ … ±2⁻⁵.
      auto* values = bytes_.as<uint16_t>();
      for (int64_t i = 0; i < bytes_.bytes() / 2; ++i) values[i] = (values[i] & 0x807f) | 0x3c80;
    }
  }

  WeightProvider provider() {
    WeightProvider provider;
    provider.linear = [this](const Node& node) { return linear(node); };
    provider.norm = [](const Node& node) {
      Tensor weight(DType::kF32, {node.n});
      std::fill(weight.f32().begin(), weight.f32().end(), 1.0f);
      return weight;
    };
    provider.bias = [](const Node& node) { return Tensor::zeros(DType::kF32, {node.n}); };
    return provider;
  }

 private:
  LinearWeight linear(const Node& node) {
    LinearWeight weight;
    WeightView& view = weight.view;
    view.n = node.n;
    view.k = node.k;
    view.data = bytes_.as<std::byte>();
    if (scheme_ == "bf16") {
      view.format = WeightFormat::kBF16;
      return weight;
    }
    const bool in_layer = node.layer >= 0;
    if (in_layer && scheme_[1] == '4') {
      view.format = WeightFormat::kInt4Group;
      view.group_size = group_size_;
      auto* scales = scales_.as<uint16_t>();
      view.two_level = scheme_ == "w4a8-2l";
      const float step = two_level_step_near(0.0004f);
      // Multiples that every zero point allows.
      for (int64_t i = 0; i < node.n * view.groups(); ++i)
        scales[i] = f32_to_f16(view.two_level ? step * static_cast<float>(1 + i % 8) : 0.002f);
      view.scales = scales;
      view.zeros = bytes_.as<uint8_t>();
    } else {
      view.format =
          in_layer && scheme_ == "fp8" ? WeightFormat::kFp8Channel : WeightFormat::kInt8Channel;
      auto* scales = channel_scales_.as<float>();
      for (int64_t i = 0; i < node.n; ++i) scales[i] = 0.0002f;
      view.scales = scales;
    }
    if (in_layer)
      weight.activation = activation_of(QuantScheme::preset(scheme_.substr(0, scheme_.find('-'))));
    return weight;
  }

  std::string scheme_;
  int64_t group_size_;
  // Scales of all weights of a format are the same, whenever they are packed.
  Buffer bytes_, scales_, channel_scales_;
};

struct Options {
  std::map<std::string, std::string> values = {
      {"--shape", "llama-3-8b"}, {"--scheme", "w4a8"}, {"--kv", "bf16"},
      {"--batch", "1,64"},       {"--prompt", "1024"}, {"--generate", "128"},
      {"--layers", "0"},         {"--graphs", "on"},   {"--bandwidth", "3090"}};
  int64_t number(const std::string& name) const { return std::stoll(values.at(name)); }
};

void measure(Executor& executor, const Options& options, int64_t batch) {
  const int64_t prompt = options.number("--prompt"), generate = options.number("--generate");
  // 16-bit caches are bf16 on a GPU.
  const std::string& type = options.values.at("--kv");
  const KvFormat kv(parse_kv_type(type == "bf16" ? "f16" : type));
  KvCache cache = executor.make_cache(batch, prompt + generate + 1, kv);
  const int64_t vocab = executor.config().vocab_size, room = executor.options().max_tokens;
  std::mt19937 random(2);
  std::vector<int32_t> ids, rows(batch);
  for (int64_t b = 0; b < batch; ++b) rows[b] = static_cast<int32_t>(b);
  const auto draw = [&](int64_t count) {
    ids.resize(count);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  };

  // As many whole prompts a step as fit, else pieces of one.
  const auto prefill = [&] {
    std::vector<int64_t> starts(batch), counts(batch);
    int64_t done = 0;
    while (done < batch * prompt) {
      std::fill(counts.begin(), counts.end(), 0);
      int64_t left = room;
      for (int64_t b = done / prompt; b < batch && left > 0; ++b) {
        counts[b] = std::min(prompt - starts[b], left);
        left -= counts[b];
      }
      draw(room - left);
      const ContiguousBatch step(starts, counts, cache.page_tokens());
      executor.step(ids, step.view(), cache);
      for (int64_t b = 0; b < batch; ++b) starts[b] += counts[b];
      done += room - left;
    }
    const int32_t last[] = {static_cast<int32_t>(std::ssize(ids) - 1)};
    int32_t token;
    executor.argmax(last, {&token, 1});
  };
  prefill();
  const auto begin = Clock::now();
  prefill();
  const double prompt_us = microseconds(begin, Clock::now());

  std::vector<double> steps, host;
  for (int round = 0; round < 3; ++round) {
    draw(batch);
    for (int64_t i = 0; i < generate; ++i) {
      const auto start = Clock::now();
      const std::vector<int64_t> starts(batch, prompt + i), counts(batch, 1);
      const ContiguousBatch step(starts, counts, cache.page_tokens());
      executor.step(ids, step.view(), cache);
      const auto launched = Clock::now();
      executor.argmax(rows, ids);
      if (round == 0) continue;
      steps.push_back(microseconds(start, Clock::now()));
      host.push_back(microseconds(start, launched));
    }
  }
  std::sort(steps.begin(), steps.end());
  std::sort(host.begin(), host.end());
  const double median = steps[steps.size() / 2];
  const double token_bytes =
      static_cast<double>(cache.bytes()) / static_cast<double>(batch * cache.page_tokens());
  const double bytes = static_cast<double>(executor.weight_bytes()) +
                       token_bytes * static_cast<double>(batch * (prompt + generate / 2));
  fmt::print("| {} | {} | {} | {:.0f} | {:.1f} | {:.0f} | {:.0f} | {:.1f} | {:.0f} |\n",
             options.values.at("--scheme"), options.values.at("--kv"), batch,
             static_cast<double>(batch * prompt) / prompt_us * 1e6,
             static_cast<double>(batch) / median * 1e6, median, steps[steps.size() * 9 / 10],
             host[host.size() / 2],
             100 * bytes / (static_cast<double>(options.number("--bandwidth")) * 1e3) / median);
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    if (!options.values.contains(argv[i]) || i + 1 == argc)
      throw Error(ErrorKind::kInvalidArgument, "unknown option {}, or no value for it", argv[i]);
    options.values[argv[i]] = argv[i + 1];
  }
  std::vector<int64_t> batches;
  std::istringstream list(options.values["--batch"]);
  for (std::string item; std::getline(list, item, ',');) batches.push_back(std::stoll(item));
  const ModelConfig config = config_of(options.values["--shape"], options.number("--layers"));
  const Graph graph = build_graph(config);
  ThreadPool pool(0);
  RandomWeights weights(options.values["--scheme"], config);
  const auto start = Clock::now();
  Executor executor(
      config, graph, weights.provider(),
      {.max_tokens = 2048,
       .max_context = 8192,
       .max_logit_rows = std::max<int64_t>(16, *std::max_element(batches.begin(), batches.end())),
       .backend = Backend::kCuda,
       .record_graphs = options.values["--graphs"] == "on"},
      pool);
  fmt::print("loaded in {:.1f} s, {:.2f} GB of weights read a token\n",
             microseconds(start, Clock::now()) / 1e6,
             static_cast<double>(executor.weight_bytes()) / 1e9);
  fmt::print(
      "| scheme | KV | batch | prompt t/s | decode t/s | step us | p90 | host us | %BW |\n"
      "|---|---|--:|--:|--:|--:|--:|--:|--:|\n");
  for (const int64_t batch : batches) measure(executor, options, batch);
  return 0;
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) {
  try {
    return whit::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_cuda_model: {}\n", error.what());
    return 1;
  }
}
