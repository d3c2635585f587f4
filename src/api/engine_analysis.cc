// What is inside an LLMEngine: logits, values between layers, weights, and copies of it.
#include <algorithm>
#include <cstring>
#include <set>

#include "api/engine_state.h"
#include "base/progress.h"
#include "export/hf_directory.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kEmbedOutput = "model.embed_tokens.output";
constexpr std::string_view kNormOutput = "model.norm.output";

std::string layer_output(int layer) { return fmt::format("model.layers.{}.output", layer); }

void check_prompt(std::span<const int32_t> prompt, const Executor& executor) {
  if (prompt.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "the prompt has no tokens; give at least one character");
  if (static_cast<int64_t>(prompt.size()) > executor.options().max_context)
    throw Error(ErrorKind::kInvalidArgument, "the prompt has {} tokens, but the context is {}",
                prompt.size(), executor.options().max_context);
  for (const int32_t id : prompt)
    if (id < 0 || id >= executor.config().vocab_size)
      throw Error(ErrorKind::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                  executor.config().vocab_size);
}

Array copy_rows(const float* rows, int64_t count, int64_t width, int64_t stride) {
  Array array{.shape = {count, width}, .values = std::vector<float>(count * width)};
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(array.values.data() + i * width, rows + i * stride, width * sizeof(float));
  return array;
}

std::vector<std::string> all_tap_names(const Graph& graph) {
  std::vector<std::string> names{std::string(kEmbedOutput)};
  for (int layer = 0; layer < graph.layers(); ++layer) {
    const NodeRange range = graph.layer(layer);
    for (NodeId id = range.begin; id < range.end; ++id)
      if (graph.node(id).op == Op::kLinear) names.push_back(graph.node(id).name + ".input");
    names.push_back(layer_output(layer));
  }
  names.emplace_back(kNormOutput);
  return names;
}

// Runs the model layer by layer over one prompt and keeps what was asked for.
class TapRun {
 public:
  TapRun(const Model& model, KvFormat kv_format, std::span<const int32_t> prompt,
         std::set<std::string> wanted, cpu::Isa isa, ThreadPool& pool)
      : graph_(model.graph()),
        weights_(model.weights()),
        kv_format_(std::move(kv_format)),
        prompt_(prompt),
        count_(static_cast<int64_t>(prompt.size())),
        wanted_(std::move(wanted)),
        options_{.max_tokens = count_, .isa = isa},
        pool_(pool),
        rope_(rope_tables(model.config(), count_)) {}

  std::map<std::string, Array> run() {
    const NodeId first = graph_.body().begin;
    embed({first, first + 1});
    for (int layer = 0; layer < graph_.layers() && !done(); ++layer) {
      check_interrupt();
      run_layer(layer);
    }
    if (!done()) normalize();
    return std::move(found_);
  }

 private:
  bool done() const { return found_.size() == wanted_.size(); }

  void keep(const std::string& name, const float* rows, int64_t width, int64_t stride) {
    if (wanted_.contains(name)) found_.emplace(name, copy_rows(rows, count_, width, stride));
  }

  // What leaves a range: the input of the next, and perhaps an answer.
  void take_hidden(const std::string& name, const float* rows, int64_t width) {
    hidden_.assign(rows, rows + count_ * width);
    keep(name, hidden_.data(), width, width);
  }

  void embed(NodeRange range) {
    Program program(graph_, range, weights_, options_, pool_);
    Program::Input input;
    input.ids = prompt_.data();
    input.batch.t = count_;
    take_hidden(std::string(kEmbedOutput), program.run(input),
                graph_.value(graph_.range_output(range)).width);
  }

  void run_layer(int layer) {
    const NodeRange range = graph_.layer(layer);
    Program program(graph_, range, weights_, options_, pool_);
    KvCache cache(graph_, range, kv_format_, 1, round_up(count_, kKvBlockTokens));
    const int64_t starts[] = {0}, counts[] = {count_};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    Program::Input input;
    input.hidden = hidden_.data();
    input.batch = batch.view();
    input.rope = &rope_;
    input.cache = &cache;
    const auto tap = [&](ValueId value, const float* rows, int64_t, int64_t stride) {
      for (const NodeId consumer : graph_.value(value).consumers)
        if (graph_.node(consumer).op == Op::kLinear)
          keep(graph_.node(consumer).name + ".input", rows, graph_.value(value).width, stride);
    };
    const float* rows = program.run(input, tap);
    take_hidden(layer_output(layer), rows, graph_.value(graph_.range_output(range)).width);
  }

  void normalize() {
    const NodeId norm = graph_.head().begin;
    Program program(graph_, {norm, norm + 1}, weights_, options_, pool_);
    Program::Input input;
    input.hidden = hidden_.data();
    input.batch.t = count_;
    take_hidden(std::string(kNormOutput), program.run(input),
                graph_.value(graph_.node(norm).output).width);
  }

  const Graph& graph_;
  const WeightProvider weights_;
  const KvFormat kv_format_;
  std::span<const int32_t> prompt_;
  const int64_t count_;
  const std::set<std::string> wanted_;
  const ProgramOptions options_;
  ThreadPool& pool_;
  const RopeTables rope_;
  std::vector<float> hidden_;
  std::map<std::string, Array> found_;
};

const Node& node_of_weight(const Graph& graph, std::string_view module) {
  for (const Node& node : graph.nodes())
    if ((node.op == Op::kLinear || node.op == Op::kEmbedding) &&
        (node.name == module || module_of(node) == module))
      return node;
  throw Error(ErrorKind::kInvalidArgument,
              "{} is no linear layer or embedding of this model; weight_names() lists them",
              module);
}

}  // namespace

Array LLMEngine::logits(std::span<const int32_t> prompt) {
  Executor& executor = *state_->loaded.executor;
  check_prompt(prompt, executor);
  const auto count = static_cast<int64_t>(prompt.size());
  const int64_t vocabulary = executor.config().vocab_size;
  Array result{.shape = {count, vocabulary}, .values = std::vector<float>(count * vocabulary)};
  state_->requests.exclusively([&] {
    KvCache cache = executor.make_cache(1, count, state_->requests.kv_format());
    for (int64_t begin = 0; begin < count;) {
      check_interrupt();
      const int64_t starts[] = {begin},
                    counts[] = {std::min(count - begin, executor.options().max_tokens)};
      const ContiguousBatch batch(starts, counts, cache.page_tokens());
      executor.step(prompt.subspan(begin, counts[0]), batch.view(), cache);
      for (int64_t row = 0; row < counts[0]; row += State::kLogitRows) {
        std::vector<int32_t> rows;
        for (int64_t i = row; i < std::min(counts[0], row + State::kLogitRows); ++i)
          rows.push_back(static_cast<int32_t>(i));
        std::memcpy(result.values.data() + (begin + row) * vocabulary, executor.logits(rows),
                    rows.size() * vocabulary * sizeof(float));
      }
      begin += counts[0];
    }
  });
  return result;
}

std::vector<std::string> LLMEngine::tap_names() const {
  return all_tap_names(state_->loaded.model.graph());
}

std::map<std::string, Array> LLMEngine::taps(std::span<const int32_t> prompt,
                                             std::span<const std::string> names) {
  const Model& model = state_->loaded.model;
  check_prompt(prompt, *state_->loaded.executor);
  const std::vector<std::string> known = all_tap_names(model.graph());
  for (const std::string& name : names)
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw Error(ErrorKind::kInvalidArgument, "{} is no tap of this model; tap_names() lists them",
                  name);
  std::map<std::string, Array> found;
  state_->requests.exclusively([&] {
    found = TapRun(model, state_->requests.kv_format(), prompt, {names.begin(), names.end()},
                   state_->loaded.executor->options().isa, state_->pool)
                .run();
  });
  return found;
}

std::vector<std::string> LLMEngine::weight_names() const {
  std::vector<std::string> names;
  for (const Node& node : state_->loaded.model.graph().nodes())
    if (node.op == Op::kLinear || node.op == Op::kEmbedding) names.push_back(node.name);
  return names;
}

Array LLMEngine::weight(std::string_view module) const {
  const Model& model = state_->loaded.model;
  const Node& node = node_of_weight(model.graph(), module);
  const LinearWeight weight = model.weights().linear(node);
  Array array{.shape = {node.n, node.k}, .values = std::vector<float>(node.n * node.k)};
  dequantize_rows(weight, 0, node.n, array.values.data());
  return array;
}

void LLMEngine::save(const fs::path& directory) const {
  const EngineDirectory* engine = state_->loaded.model.engine();
  if (engine == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} runs as it is, so there is no engine to save; quantize it (quant_mode), or use "
                "export_hf",
                state_->loaded.model.description());
  std::error_code error;
  if (fs::equivalent(engine->path(), directory, error))
    throw Error(ErrorKind::kInvalidArgument, "{} is the engine itself; save to another directory",
                directory.string());
  OutputDirectory output(directory,
                         [](const fs::path& path) { return EngineDirectory::is_engine(path); });
  for (const auto& entry : fs::directory_iterator(engine->path())) {
    if (!entry.is_regular_file()) continue;
    check_interrupt();
    const fs::path target = output.path() / entry.path().filename();
    if (!fs::copy_file(entry.path(), target, error))
      throw Error(ErrorKind::kIo, "cannot copy {} to {}: {}", entry.path().string(),
                  target.string(), error.message());
  }
  output.commit();
}

void LLMEngine::export_hf(const fs::path& directory, std::string_view dtype,
                          std::string_view format) const {
  std::optional<DType> type;
  if (dtype == "float32")
    type = DType::kF32;
  else if (dtype == "float16")
    type = DType::kF16;
  else if (dtype == "bfloat16")
    type = DType::kBF16;
  else if (dtype != "auto")
    throw Error(ErrorKind::kInvalidArgument,
                "weights cannot be exported as {}; choose auto, float32, float16 or bfloat16",
                dtype);
  export_hf_directory(state_->loaded.model, directory, export_format(format), type);
}

}  // namespace whit
