#include "api/preflight.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <random>
#include <set>

#include "api/calibration_source.h"
#include "base/progress.h"
#include "evaluate/streamed.h"
#include "quantize/divergence.h"
#include "quantize/kv_layout.h"
#include "quantize/rotation_trial.h"
#include "quantize/sensitivity.h"
#include "runtime/batch_generator.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// A group of --mode auto (corrections, two searches, three roundings of each linear) by one of
// awq-gptq; and its passes over the tokens by one: the original and the copy, in pieces, with
// E[e·x̂ᵀ] beside each Gram matrix. Both are counted from the steps, not measured.
constexpr double kPairedSearch = 2.0, kPairedPasses = 3.5;
// A group that is rounded with salient channels as well as without: about half of its time is
// rounding.
constexpr double kRoundedTwice = 1.5;
// The study's statistics and rounding, by a pass that takes statistics.
constexpr double kStudyPasses = 2.35;
// Generating text by steps of many rows: by a pass over as many rows at once.
constexpr double kGenerationByPass = 2.0;
// By how much auto's search has more than the matrices that are counted: another factored Hessian.
constexpr double kSearchPaired = 1.5;
// Code as it is first run, stacks, texts and token ids.
constexpr double kSmallBytes = 24e6;
// Small allocations are rounded up and kept. Large ones are given back (cli/quantize_command.cc).
constexpr double kAllocatorSlack = 1.1;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:"))
      return std::strtoll(line.c_str() + 13, nullptr, 10) * 1024;
  return 0;
}

int64_t stored_bytes(int64_t n, int64_t k, const QuantScheme& scheme) {
  if (!scheme.weights) return 2 * n * k;
  if (scheme.weights->num_bits != 4) return n * k + 4 * n;
  const int64_t groups = ceil_div(k, scheme.weights->group_size);
  return n * (ceil_div(k, 2) + 2 * groups + (scheme.weights->symmetric ? 0 : ceil_div(groups, 2)));
}

class Estimator {
 public:
  Estimator(const Model& model, const BuildPlan& plan, cpu::Isa isa, ThreadPool& pool)
      : model_(model),
        graph_(model.graph()),
        config_(model.config()),
        plan_(plan),
        isa_(isa),
        pool_(pool),
        paired_(find_algorithm(plan.recipe.mode).decide == nullptr) {}

  Preflight run() {
    const auto start = Clock::now();
    check_recipe(plan_.recipe, model_);
    check_rotation(plan_);
    if (needs_calibration(plan_.recipe))
      result_.calibration_tokens = plan_.calibration.samples * plan_.calibration.length;
    sizes();
    measure();
    memory();
    divisibility();
    result_.measured_s = seconds_since(start);
    return std::move(result_);
  }

 private:
  void sizes() {
    const QuantScheme head = QuantScheme::preset(plan_.recipe.head == "int8" ? "w8a16" : "bf16");
    std::set<std::string> seen;  // a tied table is stored once
    int64_t salient = 0, table = 0;
    for (const Node& node : graph_.nodes()) {
      if (node.op == Op::kRmsNorm) result_.engine_bytes += 4 * node.n;
      if ((node.op != Op::kLinear && node.op != Op::kEmbedding) ||
          !seen.insert(node.weight_name).second)
        continue;
      const bool in_layer = node.op == Op::kLinear && node.layer >= 0;
      result_.engine_bytes += stored_bytes(node.n, node.k, in_layer ? plan_.recipe.scheme : head);
      if (in_layer) {
        const int64_t channels =
            salient_count(plan_.recipe.scheme, plan_.recipe.salient.share, node.k);
        salient += channels * (2 * node.n + 4);
        rotated_bytes_ += 4 * node.n * node.k;
      } else {
        rotated_bytes_ += (config_.tie_word_embeddings ? 2 : 1) * 4 * node.n * node.k;
        if (config_.tie_word_embeddings) table = stored_bytes(node.n, node.k, head);
      }
      if (node.bias) result_.engine_bytes += 4 * node.n;
    }
    result_.engine_bytes += salient;
    if (plan_.recipe.salient.decided_by_loss())
      result_.notes.push_back(
          fmt::format("at most {} of the engine are salient channels, as many as lower the "
                      "held-out loss enough",
                      format_bytes(static_cast<double>(salient))));
    int64_t passing = 0;  // on the disk beside the engine, for as long as it is made
    if (rotates()) {
      result_.engine_bytes += table;
      passing = rotated_bytes_;
      result_.notes.push_back(fmt::format(
          "a rotated copy of the model lies beside the output until the engine is made: {}{}",
          format_bytes(static_cast<double>(passing)),
          plan_.rotate == BuildPlan::Rotate::kByLoss && table > 0
              ? fmt::format("; the engine is {} smaller where rotation is not chosen",
                            format_bytes(static_cast<double>(table)))
              : ""));
    }
    if (plan_.recipe.salient.decided_by_loss()) passing += result_.engine_bytes;
    std::error_code error;
    fs::path place = fs::absolute(plan_.recipe.output).parent_path();
    while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
    const fs::space_info space = fs::space(place, error);
    if (!error) result_.disk_free = static_cast<int64_t>(space.available);
    if (!error && result_.disk_free < result_.engine_bytes + passing)
      result_.notes.push_back(
          fmt::format("{} has {} free, less than the {} that are needed", place.string(),
                      format_bytes(static_cast<double>(result_.disk_free)),
                      format_bytes(static_cast<double>(result_.engine_bytes + passing))));
  }

  // Whether calibration text is the model's own.
  bool model_writes() const {
    const auto sources = parse_calibration_sources(plan_.calibration.source);
    return std::any_of(sources.begin(), sources.end(),
                       [](const auto& part) { return part.source == "self"; });
  }
  // Of a weight as a program or a loop over its rows has it: bf16 as it is stored, others in f32.
  int64_t loaded_bytes(const Node& node) const {
    const bool bf16 = model_.checkpoint()->get(node.weight_name).type == StorageType::kBF16;
    return (bf16 ? 2 : 4) * node.n * node.k;
  }

  bool rotates() const { return plan_.rotate != BuildPlan::Rotate::kNo; }

  // Relative cost of deciding a group: products ΔW·Gram, and what is cubic in K.
  double search_cost(const ScalingGroup& group) const {
    const auto k = static_cast<double>(graph_.value(group.input).width);
    double rows = 0;
    for (const NodeId id : group.linears) rows += static_cast<double>(graph_.node(id).n);
    return rows * k * k + k * k * k;
  }

  void measure() {
    const WeightProvider weights = model_.weights();
    const int layers = graph_.layers();
    const NodeRange layer = graph_.layer(0);
    const std::vector<ScalingGroup> groups = scaling_groups(graph_, layer);
    Matmul matmul(pool_, isa_);
    std::vector<InputStats> stats;
    double pass_s = 0;  // of one token through one layer
    if (result_.calibration_tokens > 0 && plan_.statistics.empty()) model_.tokenizer();
    base_bytes_ = current_memory_bytes() + static_cast<int64_t>(kSmallBytes);
    if (result_.calibration_tokens > 0 || measures_quality()) {
      CalibrationData data;
      data.length = std::min(plan_.calibration.length, config_.max_position_embeddings);
      data.samples =
          std::max<int64_t>(1, std::min<int64_t>(1024 / data.length, plan_.calibration.samples));
      std::mt19937 random(1);
      for (int64_t i = 0; i < data.samples * data.length; ++i)
        data.ids.push_back(
            static_cast<int32_t>(random() % static_cast<uint64_t>(config_.vocab_size)));
      LayerStream stream(config_, graph_, weights, data, isa_, pool_);
      stream.observe(0, weights, LayerStream::Advance::kNo);  // pages, caches
      const auto start = Clock::now();
      stats = stream.observe(0, weights, LayerStream::Advance::kNo);
      pass_s = seconds_since(start) / static_cast<double>(data.samples * data.length);
    }
    const auto add = [this](const char* name, double seconds) {
      result_.time.push_back({name, seconds});
      result_.seconds += seconds;
    };
    const auto tokens = static_cast<double>(result_.calibration_tokens);
    const auto deep = static_cast<double>(layers);
    if (tokens > 0) {
      if (plan_.statistics.empty() && model_writes())
        add("text that the model writes",
            tokens * pass_s * deep * kGenerationByPass * (1 + head_share()));
      if (plan_.statistics.empty())
        add("calibration", tokens * pass_s * deep * (paired_ ? kPairedPasses : gram_share()));
    }
    // The first group of the first layer, as a layer of its own.
    NodeRange range{layer.begin, layer.begin};
    for (const NodeId id : groups.front().linears) range.end = std::max(range.end, id + 1);
    const Algorithm& algorithm = find_algorithm(paired_ ? "awq-gptq" : plan_.recipe.mode);
    const bool reads = algorithm.needs_calibration || plan_.recipe.scheme.static_activations();
    if (plan_.recipe.scheme.weights && (!reads || !stats.empty())) {
      const LayerTask task{.graph = graph_,
                           .range = range,
                           .stats = stats,
                           .scheme = plan_.recipe.scheme,
                           .fixed_alpha = plan_.recipe.alpha,
                           .matmul = matmul};
      LayerWeights working = LayerWeights::load(graph_, range, weights, pool_);
      const auto start = Clock::now();
      LayerDecision decision = algorithm.decide(task, working);
      round_layer(task, std::move(working), decision);
      double whole = 0;
      for (const ScalingGroup& group : groups) whole += search_cost(group);
      const bool twice =
          plan_.recipe.salient.decided_by_loss() && plan_.recipe.scheme.weights->num_bits == 4;
      const double layer_s = seconds_since(start) * whole / search_cost(groups.front()) *
                             (paired_ ? kPairedSearch : 1) * (twice ? kRoundedTwice : 1);
      add("search and rounding", layer_s * deep);
      if (plan_.recipe.mixed && tokens > 0) {
        const MixedRequest& mixed = *plan_.recipe.mixed;
        // Every variant of a layer runs through the layers behind it and the head; the statistics
        // that candidates are rounded with, and their rounding.
        add("sensitivity study",
            static_cast<double>(mixed.tokens * study_variants()) * pass_s * forward_share() * deep *
                    ((deep + 1) / 2 + head_share() * deep) +
                static_cast<double>(study_samples() * plan_.calibration.length) * pass_s * deep *
                    kStudyPasses);
      }
      if (plan_.rotate == BuildPlan::Rotate::kByLoss && tokens > 0) {
        const double part = static_cast<double>(
            std::min(plan_.calibration.samples, kRotationTrialSamples) * plan_.calibration.length);
        add("trying a rotated basis",
            2 * deep * (part * pass_s * (paired_ ? kPairedPasses : 2) + layer_s));
      }
    }
    if (measures_quality()) {
      const double scored = 2.0 * static_cast<double>(quality_tokens());
      add("evaluation", scored * pass_s * deep * (1 + head_share()));
    }
    // Reading and writing: bounded by dequantizing and by the disk, seconds for a gigabyte.
    add("reading and writing",
        2e-9 * static_cast<double>(model_.stored_bytes() + result_.engine_bytes +
                                   (rotates() ? 2 * rotated_bytes_ : 0)));
  }

  int64_t study_variants() const {
    return static_cast<int64_t>(scaling_groups(graph_, graph_.layer(0)).size() *
                                mixed_candidates(true, false).size());
  }
  int64_t study_samples() const {
    return std::min(plan_.recipe.mixed->samples, plan_.calibration.samples);
  }
  bool measures_quality() const { return plan_.quality.measure || plan_.quality.limits.any(); }
  int64_t quality_tokens() const {
    return plan_.quality.ctx_size *
           (plan_.quality.max_windows > 0 ? plan_.quality.max_windows : 64);
  }
  int64_t layer_weights() const {
    int64_t count = 0;
    const NodeRange layer = graph_.layer(0);
    for (NodeId id = layer.begin; id < layer.end; ++id)
      if (graph_.node(id).op == Op::kLinear) count += graph_.node(id).n * graph_.node(id).k;
    return count;
  }
  // The head's multiplications by a layer's, over all layers.
  double head_share() const {
    return static_cast<double>(config_.vocab_size * config_.hidden_size) /
           static_cast<double>(layer_weights() * graph_.layers());
  }
  // Multiplications by token of the Gram matrices of a layer's inputs, half of each by symmetry.
  double gram_products() const {
    double products = 0;
    for (const ScalingGroup& group : scaling_groups(graph_, graph_.layer(0))) {
      const auto k = static_cast<double>(graph_.value(group.input).width);
      products += 0.625 * k * k;
    }
    return products;
  }
  // A pass without statistics, by one that takes those of every token.
  double forward_share() const {
    const auto weights = static_cast<double>(layer_weights());
    return weights / (weights + gram_products());
  }
  // A pass whose Gram matrices take every n-th token, by one that takes all.
  double gram_share() const {
    const auto weights = static_cast<double>(layer_weights());
    double taken = weights;
    for (const ScalingGroup& group : scaling_groups(graph_, graph_.layer(0))) {
      const int64_t k = graph_.value(group.input).width;
      const int64_t every =
          std::max<int64_t>(1, result_.calibration_tokens / (Observer::kGramTokensPerChannel * k));
      const double gram = 0.625 * static_cast<double>(k) * static_cast<double>(k);
      taken += gram / static_cast<double>(every);
    }
    return taken / (weights + gram_products());
  }

  void memory() {
    const auto add = [this](const char* name, double bytes) {
      if (bytes <= 0) return;
      result_.memory.push_back({name, bytes});
      result_.peak_bytes += static_cast<int64_t>(bytes);
    };
    const int64_t tokens = plan_.statistics.empty() ? result_.calibration_tokens : 0;
    const int64_t width = config_.hidden_size;
    add("program, model's tables and tokenizer (measured, and what will be touched)",
        static_cast<double>(base_bytes_));
    // A layer at its fullest: while one of its groups is searched.
    const bool reads = result_.calibration_tokens > 0;
    const std::vector<ScalingGroup> groups = scaling_groups(graph_, graph_.layer(0));
    int64_t widest = 0, waiting = 4 * layer_weights(), rounded = 0, all_statistics = 0;
    double weights = 0, statistics = 0, search = 0;
    for (const ScalingGroup& group : groups) {
      const int64_t k = graph_.value(group.input).width;
      widest = std::max(widest, k);
      int64_t rows = 0, codes = 0;
      for (const NodeId id : group.linears) {
        rows += graph_.node(id).n;
        codes += stored_bytes(graph_.node(id).n, k, plan_.recipe.scheme);
      }
      // Of both splits: Gram matrix and sampled rows; of one group at a time the cross moment, too.
      const int64_t own = 2 * 4 * (k * k + Observer::kSampleRows * k);
      all_statistics += own;
      // Both splits' Gram matrices again, factored and packed; the group's weights as tried; the
      // products of one linear.
      const auto tried = static_cast<double>(
          reads ? 4 * (6 * k * k + 2 * rows * k + Observer::kSampleRows * (2 * k + rows)) : 0);
      if (!paired_) {
        search = std::max(search, kAllocatorSlack * tried);
      } else if (const double here =
                     static_cast<double>(own + 2 * 4 * k * width) + kSearchPaired * tried,
                 kept = static_cast<double>(waiting + rounded);
                 kAllocatorSlack * (here + kept) > weights + statistics + search) {
        weights = kAllocatorSlack * kept;
        statistics = kAllocatorSlack * static_cast<double>(own + 2 * 4 * k * width);
        search = kAllocatorSlack * kSearchPaired * tried;
      }
      waiting -= 4 * rows * k;
      rounded += codes;
    }
    if (!paired_) {  // one copy that is folded, one that is not, and the codes
      weights = kAllocatorSlack * static_cast<double>(9 * layer_weights());
      statistics = kAllocatorSlack * static_cast<double>(reads ? all_statistics : 0);
    }
    add(paired_ ? "hidden states of original and copy, and one input of linears"
                : "hidden states of all samples",
        static_cast<double>(4 * tokens * (paired_ ? 2 * width + widest : width)));
    if (plan_.recipe.scheme.weights) {
      add("a layer's weights, as they are and as they become", weights);
      add("its statistics", statistics);
    } else {
      search = 0;
    }
    // A layer runs over a window before it is searched. Its buffers are shared by what does not
    // live at the same time: attention and MLP.
    const double packed = 4.0 * static_cast<double>(layer_weights());  // in a program of f32
    const int64_t values = 4 * width + std::max(6 * width, 3 * config_.intermediate_size) + widest;
    double window = 0;
    if (tokens > 0) {
      const int64_t sequences = std::clamp<int64_t>(
          4096 / plan_.calibration.length, 1, std::max<int64_t>(1, plan_.calibration.samples / 16));
      window = packed + static_cast<double>(4 * sequences * plan_.calibration.length * values);
    }
    add(window > search ? "a window of activations in a layer's program" : "the search",
        std::max(window, search));
    // What runs before or behind the layers, where it needs more.
    const auto beyond = [&](const char* name, double bytes) {
      add(name, bytes - static_cast<double>(result_.peak_bytes - base_bytes_));
    };
    const Node& table = graph_.node(graph_.body().begin);
    // The table's file pages, its copy, and what is written of it once the pages are released. A
    // rotated one is f32 in its file.
    const int64_t in_f32 = 4 * table.n * table.k;
    const int64_t copied = rotates() ? in_f32 : loaded_bytes(table);
    const int64_t mapped =
        rotates() ? in_f32
                  : static_cast<int64_t>(model_.checkpoint()->get(table.weight_name).data.size());
    const int64_t stored = stored_bytes(
        table.n, table.k, QuantScheme::preset(plan_.recipe.head == "int8" ? "w8a16" : "bf16"));
    const int64_t streams = plan_.recipe.salient.decided_by_loss() ? 8 * tokens * width : 0;
    beyond("the embedding table beyond that",
           static_cast<double>(copied + std::max(mapped, stored) + streams));
    beyond("the engine's file as its digest is taken, beyond that",
           static_cast<double>(result_.engine_bytes + stored));
    if (plan_.recipe.mixed) {
      // The whole model in f32, a program each layer; the variants' states and logits; and what a
      // layer's candidates are rounded from.
      const int64_t layers = graph_.layers(), rows = plan_.recipe.mixed->tokens;
      const auto programs = static_cast<double>(layers) *
                            (packed + static_cast<double>(4 * Stage::kRunRows * values));
      const int64_t head = 4 * config_.vocab_size * (width + 2 * HeadComparison::kRows),
                    states = 4 * width *
                             (rows * (study_variants() + 2) +
                              study_samples() * plan_.calibration.length),
                    rounding = 12 * layer_weights() + all_statistics + 4 * 6 * widest * widest;
      beyond("the sensitivity study beyond that",
             kAllocatorSlack * (programs + static_cast<double>(head + states + rounding)) + window);
    }
    if (plan_.rotate == BuildPlan::Rotate::kByLoss) {
      // Two hidden states, and an input of linears (three times as wide in most models); what is
      // judged is an eighth, of three.
      const int64_t part =
          std::min(plan_.calibration.samples, kRotationTrialSamples) * plan_.calibration.length;
      beyond("the trial of a rotated basis beyond that",
             static_cast<double>(copied + mapped + 6 * 4 * part * width));
    }
    if (tokens > 0) {
      const int64_t run =
          std::min(tokens, std::max<int64_t>(1, kKvLayoutTokens / plan_.calibration.length) *
                               plan_.calibration.length);
      beyond("the choice of the keys' layout beyond that",
             packed + static_cast<double>(4 * run * (values + 2 * width)));
    }
    if (tokens > 0 && model_writes()) {
      int64_t bytes = 0;  // of the whole model in a program, keys and values in f16, logits
      for (const Node& node : graph_.nodes())
        if (node.op == Op::kLinear || node.op == Op::kEmbedding) bytes += loaded_bytes(node);
      bytes += kBatchSequences * plan_.calibration.length * graph_.layers() * 4 *
               config_.num_key_value_heads * config_.head_dim;
      bytes += 4 * kBatchSequences * config_.vocab_size;
      beyond("the model that writes the text, beyond that",
             kAllocatorSlack * static_cast<double>(bytes));
    }
    if (measures_quality()) {
      const int64_t evaluation = streamed_bytes(model_, quality_tokens(), plan_.quality.ctx_size);
      add("the evaluation beyond that", static_cast<double>(evaluation) -
                                            static_cast<double>(result_.peak_bytes) +
                                            static_cast<double>(base_bytes_));
    }
    result_.available_bytes = available_memory();
    if (result_.available_bytes > 0 && result_.peak_bytes > result_.available_bytes)
      result_.notes.push_back(
          fmt::format("{} of memory are needed, {} are available: lower --calib-samples",
                      format_bytes(static_cast<double>(result_.peak_bytes)),
                      format_bytes(static_cast<double>(result_.available_bytes))));
  }

  void divisibility() {
    const QuantScheme& scheme = plan_.recipe.scheme;
    if (scheme.weights && scheme.weights->num_bits == 4)
      for (const ScalingGroup& group : scaling_groups(graph_, graph_.layer(0))) {
        const int64_t k = graph_.value(group.input).width, size = scheme.weights->group_size;
        if (k % size != 0)
          result_.notes.push_back(fmt::format(
              "{}: {} inputs are no multiple of the group of {}: every row's last group has {}",
              graph_.node(group.linears.front()).name, k, size, k % size));
      }
    for (const int ranks : {2, 4, 8})
      result_.tensor_parallel.push_back({ranks, tensor_parallel_obstacle(config_, scheme, ranks)});
  }

  const Model& model_;
  const Graph& graph_;
  const ModelConfig& config_;
  const BuildPlan& plan_;
  cpu::Isa isa_;
  ThreadPool& pool_;
  bool paired_;
  int64_t base_bytes_ = 0;     // resident before anything runs
  int64_t rotated_bytes_ = 0;  // of a copy of the model in f32
  Preflight result_;
};

}  // namespace

Preflight preflight(const Model& model, const BuildPlan& plan, cpu::Isa isa, ThreadPool& pool) {
  return Estimator(model, plan, isa, pool).run();
}

std::string tensor_parallel_obstacle(const ModelConfig& config, const QuantScheme& scheme,
                                     int64_t ranks) {
  if (config.num_attention_heads % ranks != 0)
    return fmt::format("{} heads", config.num_attention_heads);
  if (config.num_key_value_heads % ranks != 0 && ranks % config.num_key_value_heads != 0)
    return fmt::format("{} key/value heads", config.num_key_value_heads);
  if (config.intermediate_size % ranks != 0)
    return fmt::format("{} channels of the MLP", config.intermediate_size);
  if (!scheme.weights || scheme.weights->num_bits != 4) return "";
  const int64_t group = scheme.weights->group_size;
  for (const auto& [name, k] : {std::pair("o_proj", config.num_attention_heads * config.head_dim),
                                std::pair("down_proj", config.intermediate_size)})
    if (k / ranks % group != 0)
      return fmt::format("{}: a rank's {} inputs are no multiple of the group of {}", name,
                         k / ranks, group);
  return "";
}

Json to_json(const Preflight& preflight) {
  const auto parts = [](const std::vector<Preflight::Part>& all) {
    Json json = Json::array();
    for (const Preflight::Part& part : all)
      json.push_back({{"name", part.name}, {"value", part.value}});
    return json;
  };
  Json ranks = Json::array();
  for (const auto& each : preflight.tensor_parallel)
    ranks.push_back(
        {{"ranks", each.ranks}, {"divides", each.obstacle.empty()}, {"obstacle", each.obstacle}});
  return {{"calibration_tokens", preflight.calibration_tokens},
          {"engine_bytes", preflight.engine_bytes},
          {"disk_free_bytes", preflight.disk_free},
          {"peak_memory_bytes", preflight.peak_bytes},
          {"available_memory_bytes", preflight.available_bytes},
          {"memory", parts(preflight.memory)},
          {"seconds", preflight.seconds},
          {"time", parts(preflight.time)},
          {"tensor_parallel", ranks},
          {"notes", preflight.notes},
          {"measured_s", preflight.measured_s}};
}

}  // namespace whit
