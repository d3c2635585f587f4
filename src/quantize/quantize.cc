#include "quantize/quantize.h"

#include <algorithm>
#include <cmath>

#include "base/progress.h"
#include "quantize/kv_layout.h"
#include "quantize/sequential.h"
#include "quantize/trial.h"

namespace whit {
namespace {

std::string module_of(const Node& node) {
  return node.weight_name.substr(0, node.weight_name.size() - std::string_view(".weight").size());
}

EngineManifest make_manifest(const Recipe& recipe, const Model& source,
                             const CalibrationData* data) {
  EngineManifest manifest;
  manifest.mode = recipe.mode;
  manifest.scheme = recipe.scheme;
  manifest.head = recipe.head;
  manifest.source =
      fmt::format("{} (xxh3 {})", source.description(), source.checkpoint()->digest());
  for (const LinearDecision& decision : analyse_linears(source.graph())) {
    const Node& node = source.graph().node(decision.node);
    manifest.linears[module_of(node)] =
        decision.quantize ? recipe.scheme
                          : QuantScheme::preset(recipe.head == "int8" ? "w8a16" : "bf16");
  }
  if (data != nullptr)
    manifest.calibration = {{"source", data->source},
                            {"samples", data->samples},
                            {"length", data->length},
                            {"seed", data->seed},
                            {"digest", data->digest()}};
  return manifest;
}

// Rows of a floating-point weight in the format that the plan wants.
void write_plain(EngineWriter& writer, const Node& node, const WeightView& source,
                 const QuantScheme& scheme, ThreadPool& pool) {
  if (scheme.weights) {
    QuantizedTensor quantized = make_quantized(WeightFormat::kInt8Channel, node.n, node.k, 0, true);
    pool.parallel_for(node.n, [&](int64_t begin, int64_t end) {
      std::vector<float> row(node.k);
      for (int64_t r = begin; r < end; ++r) {
        dequantize_rows(source, r, r + 1, row.data());
        quantize_rows_rtn(row.data(), r, r + 1, nullptr, quantized);
      }
    });
    writer.write_linear(node, quantized.view());
    return;
  }
  Tensor bf16(DType::kBF16, {node.n, node.k});
  pool.parallel_for(node.n, [&](int64_t begin, int64_t end) {
    std::vector<float> row(node.k);
    for (int64_t r = begin; r < end; ++r) {
      dequantize_rows(source, r, r + 1, row.data());
      for (int64_t i = 0; i < node.k; ++i)
        bf16.data<uint16_t>()[r * node.k + i] = f32_to_bf16(row[i]);
    }
  });
  writer.write_linear(
      node, {.format = WeightFormat::kBF16, .n = node.n, .k = node.k, .data = bf16.data<void>()});
}

struct Job {
  const Recipe& recipe;
  const Algorithm& algorithm;
  EngineWriter writer;
  QuantizeSummary summary;
};

void write_layer(Job& job, const Graph& graph, NodeRange range, const QuantizedLayer& layer) {
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRmsNorm)
      job.writer.write_vector(node.weight_name, layer.folded.norms.at(id).f32());
    if (node.op != Op::kLinear) continue;
    job.writer.write_linear(node, layer.linears.at(id).view());
    const auto fixed = layer.static_scales.find(id);
    if (fixed != layer.static_scales.end()) job.writer.write_static_scale(node, fixed->second);
    if (node.bias) job.writer.write_vector(node.name + ".bias", layer.folded.biases.at(id).f32());
  }
}

// An unquantized layer (scheme bf16) as it is.
void write_layer_plain(Job& job, const Graph& graph, NodeRange range, const WeightProvider& weights,
                       ThreadPool& pool) {
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRmsNorm)
      job.writer.write_vector(node.weight_name, weights.norm(node).f32());
    if (node.op != Op::kLinear) continue;
    write_plain(job.writer, node, weights.linear(node).view, job.recipe.scheme, pool);
    if (node.bias) job.writer.write_vector(node.name + ".bias", weights.bias(node).f32());
  }
}

// Through the model side by side with its quantized copy, for one recipe.
void quantize_paired(Job& job, const Model& source, const WeightProvider& weights,
                     const CalibrationData& data, cpu::Isa isa, ThreadPool& pool) {
  const Graph& graph = source.graph();
  Progress progress(fmt::format("calibrating and quantizing layer ({})", job.recipe.mode),
                    graph.layers());
  PairedStream stream(source.config(), graph, weights, data, isa, pool);
  for (int index = 0; index < graph.layers(); ++index) {
    const NodeRange range = graph.layer(index);
    SequentialLayer done = quantize_sequentially(stream, graph, range, weights, job.recipe.scheme);
    write_layer(job, graph, range, done.layer);
    for (GroupReport& report : done.reports) job.summary.reports.push_back(std::move(report));
    progress.update(index + 1);
  }
}

bool needs_stats(const Job& job) {
  return job.algorithm.needs_calibration || job.recipe.scheme.static_activations();
}

// Recipes that are decided layer by layer, from one pass over the layers. `data` null: without
// statistics.
void quantize_together(std::span<Job* const> jobs, const Model& source,
                       const WeightProvider& weights, const CalibrationData* data,
                       const QuantizeOptions& options, ThreadPool& pool) {
  const Graph& graph = source.graph();
  Progress progress(data != nullptr ? "calibrating and quantizing layer" : "quantizing layer",
                    graph.layers());
  std::optional<LayerStream> stream;
  if (data != nullptr) stream.emplace(source.config(), graph, weights, *data, options.isa, pool);
  Matmul matmul(pool, options.isa);
  const std::vector<InputStats> none;
  for (int index = 0; index < graph.layers(); ++index) {
    const NodeRange range = graph.layer(index);
    std::vector<InputStats> stats;
    if (stream)
      stats = stream->observe(
          index, weights,
          options.propagate ? LayerStream::Advance::kNo : LayerStream::Advance::kYes);
    const LayerWeights original = LayerWeights::load(graph, range, weights);
    for (Job* const job : jobs) {
      check_interrupt();
      if (!job->recipe.scheme.weights) {
        write_layer_plain(*job, graph, range, weights, pool);
        if (options.propagate && stream) stream->advance(index, weights);
        continue;
      }
      const LayerTask task{.graph = graph,
                           .range = range,
                           .stats = needs_stats(*job) ? stats : none,
                           .scheme = job->recipe.scheme,
                           .fixed_alpha = job->recipe.alpha,
                           .matmul = matmul};
      LayerWeights working = original.clone();
      LayerDecision decision = job->algorithm.decide(task, working);
      const QuantizedLayer layer = round_layer(task, std::move(working), decision);
      write_layer(*job, graph, range, layer);
      for (GroupReport& report : decision.reports)
        job->summary.reports.push_back(std::move(report));
      if (options.propagate && stream)
        stream->advance(index, provider_of(layer, graph, job->recipe.scheme));
    }
    progress.update(index + 1);
  }
}

// Static activations lose what one scale cannot hold: named where the loss is out of all
// proportion.
constexpr double kBrokenError = 0.1;
void add_warnings(Job& job) {
  if (!job.recipe.scheme.static_activations()) return;
  for (const GroupReport& report : job.summary.reports)
    if (report.error > kBrokenError)
      job.summary.warnings.push_back(
          fmt::format("{}: per-tensor static int8 activations lose {:.0f} % of the output's energy "
                      "here; use dynamic activations",
                      report.name, 100 * report.error));
}

}  // namespace

void check_recipe(const Recipe& recipe, const Model& source) {
  const Algorithm& algorithm = find_algorithm(recipe.mode);
  const std::string refusal = algorithm.refuses(recipe.scheme);
  if (!refusal.empty())
    throw Error(ErrorKind::kUnsupported, "--mode {} with --scheme {}: {}", recipe.mode,
                recipe.scheme.name(), refusal);
  if (recipe.head != "int8" && recipe.head != "bf16")
    throw Error(ErrorKind::kInvalidArgument, "--head {} is not known; choose int8 or bf16",
                recipe.head);
  if (recipe.alpha && !(*recipe.alpha >= 0 && *recipe.alpha <= 1))
    throw Error(ErrorKind::kInvalidArgument, "--alpha {} is outside 0 … 1", *recipe.alpha);
  if (algorithm.decide == nullptr)
    for (int layer = 0; layer < source.graph().layers(); ++layer)
      layer_halves(source.graph(), source.graph().layer(layer));
  if (source.checkpoint() == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} is quantized already; quantize the Hugging Face directory or GGUF file it was "
                "made from",
                source.description());
  if (recipe.scheme.weights && recipe.scheme.weights->num_bits == 4)
    for (const Node& node : source.graph().nodes())
      if (node.op == Op::kLinear && node.layer >= 0 && node.k < 32)
        throw Error(ErrorKind::kUnsupported,
                    "{}: {} inputs are fewer than the smallest group of 32; choose w8a8 or w8a16",
                    node.name, node.k);
  if (recipe.output.empty())
    throw Error(ErrorKind::kInvalidArgument, "no output directory was given (-o OUT)");
  std::error_code error;
  if (std::filesystem::exists(recipe.output, error) && !EngineDirectory::is_engine(recipe.output) &&
      !(std::filesystem::is_directory(recipe.output, error) &&
        std::filesystem::is_empty(recipe.output, error)))
    throw Error(ErrorKind::kInvalidArgument,
                "{} exists and is no engine; choose another output or remove it",
                recipe.output.string());
}

std::vector<QuantizeSummary> quantize_model(const Model& source, std::span<const Recipe> recipes,
                                            const CalibrationData* data,
                                            const QuantizeOptions& options, ThreadPool& pool) {
  const Graph& graph = source.graph();
  bool calibrate = false, together = false;  // any recipe; one of those that share a pass
  for (const Recipe& recipe : recipes) {
    check_recipe(recipe, source);
    const Algorithm& algorithm = find_algorithm(recipe.mode);
    const bool needs = algorithm.needs_calibration || recipe.scheme.static_activations();
    calibrate |= needs;
    together |= needs && algorithm.decide != nullptr;
    if (options.propagate && algorithm.decide == nullptr)
      throw Error(ErrorKind::kInvalidArgument,
                  "--mode {} calibrates on the quantized layers' outputs already: leave out "
                  "--propagate",
                  recipe.mode);
  }
  if (calibrate && data == nullptr)
    throw Error(ErrorKind::kInvalidArgument, "calibration data is needed (--calib FILE or self)");
  if (options.propagate && recipes.size() != 1)
    throw Error(ErrorKind::kInvalidArgument,
                "--propagate calibrates on one recipe's own outputs: give one recipe");

  const WeightProvider weights = source.weights();
  const auto text_files =
      source.text_files();  // before any work: a model without a tokenizer makes no engine
  std::vector<std::unique_ptr<Job>> jobs;
  for (const Recipe& recipe : recipes) {
    const Algorithm& algorithm = find_algorithm(recipe.mode);
    const CalibrationData* used = algorithm.needs_calibration ? data : nullptr;
    jobs.push_back(std::unique_ptr<Job>(
        new Job{recipe,
                algorithm,
                EngineWriter(recipe.output, graph, make_manifest(recipe, source, used)),
                {}}));
    jobs.back()->summary.output = recipe.output;
  }

  if (data != nullptr) {
    const Json layouts =
        to_json(measure_kv_layouts(source.config(), graph, weights, *data, options.isa, pool));
    for (const auto& job : jobs)
      if (job->algorithm.needs_calibration) job->writer.manifest().kv_cache = layouts;
  }

  const Node& table = graph.node(graph.body().begin);
  {
    const LinearWeight embedding = weights.linear(table);
    for (const auto& job : jobs)
      write_plain(job->writer, table, embedding.view,
                  job->writer.manifest().linears.at(module_of(table)), pool);
  }
  std::vector<Job*> sharing;  // of one pass over the layers
  for (const auto& job : jobs)
    if (job->algorithm.decide != nullptr) sharing.push_back(job.get());
  if (!sharing.empty())
    quantize_together(sharing, source, weights, together ? data : nullptr, options, pool);
  for (const auto& job : jobs)
    if (job->algorithm.decide == nullptr)
      quantize_paired(*job, source, weights, *data, options.isa, pool);
  for (const auto& job : jobs) {
    const NodeRange head = graph.head();
    for (NodeId id = head.begin; id < head.end; ++id) {
      const Node& node = graph.node(id);
      if (node.op == Op::kRmsNorm)
        job->writer.write_vector(node.weight_name, weights.norm(node).f32());
      if (node.op == Op::kLinear && module_of(node) != module_of(table))
        write_plain(job->writer, node, weights.linear(node).view,
                    job->writer.manifest().linears.at(module_of(node)), pool);
    }
    for (const auto& [name, content] : text_files) job->writer.write_text(name, content);
    add_warnings(*job);
    for (const GroupReport& report : job->summary.reports)
      job->writer.manifest().report.push_back(to_json(report));
    check_interrupt();
  }
  std::vector<QuantizeSummary> summaries;
  for (const auto& job : jobs) {
    job->writer.finish();
    const Model engine = Model::open(job->recipe.output);
    job->summary.engine_bytes = engine.stored_bytes();
    job->summary.bits_per_weight = engine.bits_per_weight();
    summaries.push_back(std::move(job->summary));
  }
  return summaries;
}

}  // namespace whit
