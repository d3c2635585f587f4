#include "quantize/quantize.h"

#include <algorithm>
#include <cmath>

#include "base/progress.h"
#include "calibrate/coverage.h"
#include "engine/runner.h"
#include "quantize/kv_layout.h"
#include "quantize/profile.h"
#include "quantize/resume.h"
#include "quantize/sequential.h"
#include "quantize/trial.h"

namespace whit {
namespace {

// A single set is described as if it had been calibrated on directly: the engine is the same.
Json description_of(const StatisticsInfo& info) {
  if (info.data.size() == 1) return info.data[0];
  std::string source;
  int64_t samples = 0;
  for (const Json& data : info.data) {
    source += (source.empty() ? "" : " + ") + data.value("source", std::string("?"));
    samples += data.value("samples", int64_t{0});
  }
  return {{"source", source}, {"samples", samples}, {"merged", info.data}};
}

Json device_of(const QuantizeOptions& options) {
  Json device = Json::object();
  device["backend"] = name(options.accelerator == nullptr ? Backend::kCpu : Backend::kCuda);
  if (options.accelerator != nullptr) device["device"] = options.accelerator->description();
  return device;
}

EngineManifest make_manifest(const Recipe& recipe, const Model& source, Json calibration,
                             const MixedDecision* mixed) {
  EngineManifest manifest;
  manifest.mode = recipe.mode;
  manifest.scheme = recipe.scheme;
  manifest.head = recipe.head;
  manifest.source =
      fmt::format("{} (xxh3 {})", source.description(), source.checkpoint()->digest());
  for (const LinearDecision& decision : analyse_linears(source.graph())) {
    const Node& node = source.graph().node(decision.node);
    QuantScheme& scheme = manifest.linears[module_of(node)];
    scheme = decision.quantize ? recipe.scheme
                               : QuantScheme::preset(recipe.head == "int8" ? "w8a16" : "bf16");
    if (mixed != nullptr && mixed->schemes.contains(decision.node))
      scheme = mixed->schemes.at(decision.node);
    if (const int64_t count = salient_count(scheme, recipe.salient.share, node.k);
        decision.quantize && count > 0 && !recipe.salient.decided_by_loss())
      manifest.salient[module_of(node)] = count;
  }
  if (mixed != nullptr) manifest.mixed = mixed->record;
  if (!calibration.is_null()) manifest.calibration = std::move(calibration);
  return manifest;
}

// A floating-point weight in the format that the plan wants, rounded to nearest.
template <typename Writer>
void write_plain(Writer& writer, const Node& node, const WeightView& source,
                 const QuantScheme& scheme, ThreadPool& pool) {
  writer.write_linear(node, round_to_scheme(source, scheme, pool).view());
}

// Layers of an engine whose header is not known before the last of them: which tensors there are
// depends on what is decided on the way. They are kept in a file of a directory that goes with it.
class Spool {
 public:
  explicit Spool(const std::filesystem::path& target)
      : directory_(target, EngineDirectory::is_engine), file_(directory_.path() / kLayers) {}
  OutputFile& file() { return file_; }
  void replay(LayerOutput& output) {
    file_.close();
    output.replay(MappedFile(directory_.path() / kLayers).bytes());
  }

 private:
  static constexpr const char* kLayers = "layers";
  OutputDirectory directory_;
  OutputFile file_;
};

struct Job {
  const Recipe& recipe;
  const Algorithm& algorithm;
  EngineManifest pending;  // until the writer has it
  QuantizeSummary summary = {};
  std::vector<Coverage> coverage = {};
  SchemePlan schemes = {};                    // of linears that have another than the recipe's
  std::unique_ptr<EngineWriter> writer = {};  // null while there is a spool
  std::unique_ptr<Spool> spool = {};
  // Directories beside the output that were there before this job.
  std::vector<std::filesystem::path> others = {};

  EngineManifest& manifest() { return writer ? writer->manifest() : pending; }
  // Makes the engine's directory and writes what comes before the layers.
  void open_writer(const Model& source, const WeightProvider& weights, ThreadPool& pool) {
    const Graph& graph = source.graph();
    writer = std::make_unique<EngineWriter>(recipe.output, graph, std::move(pending));
    const Node& table = graph.node(graph.body().begin);
    write_plain(*writer, table, weights.linear(table).view, manifest().linears.at(module_of(table)),
                pool);
  }
};
using Jobs = std::vector<std::unique_ptr<Job>>;

// What the next process of the run is to remove, should this one be killed.
void remember_directories(Checkpointer& checkpointer, const Job& job,
                          const QuantizeOptions& options) {
  std::vector<std::filesystem::path> ours = partial_directories(job.recipe.output);
  std::erase_if(ours, [&](const auto& path) {
    return std::find(job.others.begin(), job.others.end(), path) != job.others.end();
  });
  if (!options.checkpoint_name.empty()) ours.push_back(job.recipe.output);
  if (!options.passing.empty()) ours.push_back(options.passing);
  checkpointer.remember(ours);
}

void write_layer(LayerOutput& output, const Graph& graph, NodeRange range,
                 const QuantizedLayer& layer) {
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRmsNorm)
      output.write_vector(node.weight_name, layer.folded.norms.at(id).f32());
    if (node.op != Op::kLinear) continue;
    output.write_linear(node, layer.linears.at(id).view());
    if (const auto second = layer.salient.find(id); second != layer.salient.end())
      output.write_salient(node, second->second.channels, second->second.weight.view());
    const auto fixed = layer.static_scales.find(id);
    if (fixed != layer.static_scales.end()) output.write_static_scale(node, fixed->second);
    if (node.bias) output.write_vector(node.name + ".bias", layer.folded.biases.at(id).f32());
  }
}

// An unquantized layer (scheme bf16) as it is.
void write_layer_plain(LayerOutput& output, const Graph& graph, NodeRange range,
                       const WeightProvider& weights, const QuantScheme& scheme, ThreadPool& pool) {
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRmsNorm) output.write_vector(node.weight_name, weights.norm(node).f32());
    if (node.op != Op::kLinear) continue;
    write_plain(output, node, weights.linear(node).view, scheme, pool);
    if (node.bias) output.write_vector(node.name + ".bias", weights.bias(node).f32());
  }
}

// Through the model side by side with its quantized copy, for one recipe.
void quantize_paired(Job& job, const Model& source, const WeightProvider& weights,
                     const CalibrationData& data, const QuantizeOptions& options,
                     Checkpointer& checkpointer, ThreadPool& pool) {
  const Graph& graph = source.graph();
  Progress progress(fmt::format("calibrating and quantizing layer ({})", job.recipe.mode),
                    graph.layers());
  PairedStream stream(source.config(), graph, weights, data, options.isa, pool);
  const SequentialOptions sequential{
      .scheme = job.recipe.scheme, .plan = job.schemes, .salient = job.recipe.salient};
  LayerOutput output(job.writer.get(), graph, checkpointer.log(),
                     job.spool ? &job.spool->file() : nullptr);
  const RunState state{job.summary.reports, job.coverage, job.summary.profiles, stream.state()};
  job.summary.resumed_layers = checkpointer.restore(output, state);
  for (int index = job.summary.resumed_layers; index < graph.layers(); ++index) {
    const NodeRange range = graph.layer(index);
    SequentialLayer done = quantize_sequentially(stream, graph, range, weights, sequential);
    write_layer(output, graph, range, done.layer);
    for (GroupReport& report : done.reports) job.summary.reports.push_back(std::move(report));
    for (Json& profile : done.profiles) job.summary.profiles.push_back(std::move(profile));
    checkpointer.layer_done(index + 1, state);
    progress.update(index + 1);
  }
  if (!job.spool) return;
  for (const auto& [id, count] : output.salient())
    job.manifest().salient[module_of(graph.node(id))] = count;
  job.open_writer(source, weights, pool);
  remember_directories(checkpointer, job, options);
  LayerOutput engine(job.writer.get(), graph, nullptr);
  job.spool->replay(engine);
  job.spool.reset();
}

bool needs_stats(const Job& job) {
  return job.algorithm.needs_calibration || job.recipe.scheme.static_activations();
}

// Recipes that are decided layer by layer, from one pass over the layers. `data` null: from
// options.statistics, or without any. Returns what the data does not say.
std::vector<std::string> quantize_together(std::span<Job* const> jobs, const Model& source,
                                           const WeightProvider& weights,
                                           const CalibrationData* data,
                                           const QuantizeOptions& options,
                                           Checkpointer& checkpointer, ThreadPool& pool) {
  const Graph& graph = source.graph();
  Progress progress(data != nullptr ? "calibrating and quantizing layer" : "quantizing layer",
                    graph.layers());
  std::vector<Coverage>& coverage = jobs.front()->coverage;
  std::optional<LayerStream> stream;
  if (data != nullptr)
    stream.emplace(source.config(), graph, weights, *data, options.isa, pool, options.accelerator);
  Matmul matmul(pool, options.isa);
  const std::vector<InputStats> none;
  // Several recipes keep nothing.
  QuantizeSummary& summary = jobs.front()->summary;
  const RunState state{summary.reports, coverage, summary.profiles,
                       stream ? stream->state() : std::vector<Tensor*>()};
  std::vector<LayerOutput> outputs;
  for (Job* const job : jobs) outputs.emplace_back(job->writer.get(), graph, checkpointer.log());
  summary.resumed_layers = checkpointer.restore(outputs.front(), state);
  for (int index = summary.resumed_layers; index < graph.layers(); ++index) {
    const NodeRange range = graph.layer(index);
    std::vector<InputStats> stats;
    if (stream)
      stats = stream->observe(
          index, weights,
          options.propagate ? LayerStream::Advance::kNo : LayerStream::Advance::kYes);
    else if (options.statistics != nullptr)
      stats = options.statistics->layer(graph, index);
    for (const InputStats& each : stats)
      coverage.push_back(coverage_of(each, reader_of(graph, each.value)));
    const LayerWeights original = LayerWeights::load(graph, range, weights, pool);
    const std::vector<ScalingGroup> groups = scaling_groups(graph, range);
    for (size_t j = 0; j < jobs.size(); ++j) {
      Job* const job = jobs[j];
      check_interrupt();
      if (!job->recipe.scheme.weights) {
        write_layer_plain(outputs[j], graph, range, weights, job->recipe.scheme, pool);
        if (options.propagate && stream) stream->advance(index, weights);
        continue;
      }
      const LayerTask task{.graph = graph,
                           .range = range,
                           .stats = needs_stats(*job) ? stats : none,
                           .scheme = job->recipe.scheme,
                           .fixed_alpha = job->recipe.alpha,
                           .matmul = matmul,
                           .accelerator = options.accelerator};
      LayerWeights working = original.clone(pool);
      LayerDecision decision = job->algorithm.decide(task, working);
      std::vector<GroupProfile> profiles = profile_layer(task, groups, original, working, decision);
      const QuantizedLayer layer = round_layer(task, std::move(working), decision);
      for (GroupProfile& profile : profiles) {
        profile.bits(layer.linears);
        job->summary.profiles.push_back(profile.json());
      }
      write_layer(outputs[j], graph, range, layer);
      for (GroupReport& report : decision.reports)
        job->summary.reports.push_back(std::move(report));
      if (options.propagate && stream) stream->advance(index, provider_of(layer, graph));
    }
    checkpointer.layer_done(index + 1, state);
    progress.update(index + 1);
  }
  return coverage_warnings(coverage);
}

// Static activations lose what one scale cannot hold: named where the loss is out of all
// proportion.
constexpr double kBrokenError = 0.1;
void add_warnings(Job& job) {
  for (const GroupReport& report : job.summary.reports)
    for (const std::string& fallback : report.fallbacks)
      job.summary.warnings.push_back(fmt::format("{}: {}", report.name, fallback));
  if (!job.recipe.scheme.static_activations()) return;
  for (const GroupReport& report : job.summary.reports)
    if (report.error > kBrokenError)
      job.summary.warnings.push_back(
          fmt::format("{}: per-tensor static activations lose {:.0f} % of the output's energy "
                      "here; use dynamic activations",
                      report.name, 100 * report.error));
}

// `shared_data`: for the recipes that share a pass; null where statistics or nothing serve them.
std::vector<QuantizeSummary> run_jobs(
    const Jobs& jobs, const Model& source, const WeightProvider& weights,
    const std::vector<std::pair<std::string, std::string>>& text_files,
    const CalibrationData* shared_data, const CalibrationData* data, const QuantizeOptions& options,
    Checkpointer& checkpointer, ThreadPool& pool) {
  const Graph& graph = source.graph();
  const Node& table = graph.node(graph.body().begin);
  std::vector<Job*> sharing;  // of one pass over the layers
  for (const auto& job : jobs)
    if (job->algorithm.decide != nullptr) sharing.push_back(job.get());
  std::vector<std::string> warnings;  // about the data
  if (data != nullptr) warnings = data->warnings;
  if (!sharing.empty())
    for (std::string& warning :
         quantize_together(sharing, source, weights, shared_data, options, checkpointer, pool))
      warnings.push_back(std::move(warning));
  for (const auto& job : jobs)
    if (job->algorithm.decide == nullptr)
      quantize_paired(*job, source, weights, *data, options, checkpointer, pool);
  for (const auto& job : jobs) {
    const NodeRange head = graph.head();
    for (NodeId id = head.begin; id < head.end; ++id) {
      const Node& node = graph.node(id);
      if (node.op == Op::kRmsNorm)
        job->writer->write_vector(node.weight_name, weights.norm(node).f32());
      if (node.op == Op::kLinear && module_of(node) != module_of(table))
        write_plain(*job->writer, node, weights.linear(node).view,
                    job->manifest().linears.at(module_of(node)), pool);
    }
    for (const auto& [name, content] : text_files) job->writer->write_text(name, content);
    if (needs_stats(*job))
      job->summary.warnings.insert(job->summary.warnings.end(), warnings.begin(), warnings.end());
    add_warnings(*job);
    for (const GroupReport& report : job->summary.reports)
      job->manifest().report.push_back(to_json(report));
    check_interrupt();
  }
  std::vector<QuantizeSummary> summaries;
  for (const auto& job : jobs) {
    job->writer->finish();
    const Model engine = Model::open(job->recipe.output);
    job->summary.engine_bytes = engine.stored_bytes();
    job->summary.bits_per_weight = engine.bits_per_weight();
    summaries.push_back(std::move(job->summary));
  }
  return summaries;
}

}  // namespace

bool statistics_suffice(const std::string& mode) { return find_algorithm(mode).decide != nullptr; }

void check_accelerated(const Recipe& recipe) {
  if (find_algorithm(recipe.mode).decide == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "--mode {} runs the model beside its quantized copy, which is done on the CPU "
                "alone: use --backend cpu, or another mode",
                recipe.mode);
}

void check_recipe(const Recipe& recipe, const Model& source) {
  const Algorithm& algorithm = find_algorithm(recipe.mode);
  const std::string refusal = algorithm.refuses(recipe.scheme);
  if (!refusal.empty())
    throw Error(ErrorKind::kUnsupported, "--mode {} with --scheme {}: {}", recipe.mode,
                recipe.scheme.name(), refusal);
  if (recipe.mixed) {
    check_mixed(*recipe.mixed);
    if (algorithm.decide != nullptr)
      throw Error(ErrorKind::kUnsupported,
                  "mixed precision needs --mode auto, which can correct a part's errors in the "
                  "next; --mode {} cannot",
                  recipe.mode);
  }
  if (recipe.salient.share != 0) {
    if (!(recipe.salient.share > 0 && recipe.salient.share <= 0.1))
      throw Error(ErrorKind::kInvalidArgument,
                  "--salient {} is outside 0 … 0.1 of the input channels", recipe.salient.share);
    if (algorithm.decide != nullptr)
      throw Error(ErrorKind::kUnsupported, "--salient needs --mode auto, not {}", recipe.mode);
  }
  if (recipe.head != "int8" && recipe.head != "bf16")
    throw Error(ErrorKind::kInvalidArgument, "--head {} is not known; choose int8 or bf16",
                recipe.head);
  if (recipe.alpha && !(*recipe.alpha >= 0 && *recipe.alpha <= 1))
    throw Error(ErrorKind::kInvalidArgument, "--alpha {} is outside 0 … 1", *recipe.alpha);
  if (algorithm.decide == nullptr)
    for (int layer = 0; layer < source.graph().layers(); ++layer)
      layer_halves(source.graph(), source.graph().layer(layer));
  if (source.checkpoint() == nullptr || source.prequantized() != nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} is quantized already; quantize the Hugging Face directory or GGUF file it was "
                "made from",
                source.description());
  if (recipe.scheme.weights && recipe.scheme.weights->num_bits == 4)
    for (const Node& node : source.graph().nodes())
      if (node.op == Op::kLinear && node.layer >= 0 && node.k < 32)
        throw Error(
            ErrorKind::kUnsupported,
            "{}: {} inputs are fewer than the smallest group of 32; choose w8a8, w8a16 or fp8",
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
    if (options.accelerator != nullptr) check_accelerated(recipe);
    if (options.propagate && algorithm.decide == nullptr)
      throw Error(ErrorKind::kInvalidArgument,
                  "--mode {} calibrates on the quantized layers' outputs already: leave out "
                  "--propagate",
                  recipe.mode);
  }
  if (options.statistics != nullptr) {
    options.statistics->check_model(source.checkpoint()->digest());
    for (const Recipe& recipe : recipes)
      if (!statistics_suffice(recipe.mode))
        throw Error(ErrorKind::kUnsupported,
                    "--mode {} runs the calibration data through the quantized model as well: give "
                    "--calib in place of --stats",
                    recipe.mode);
    if (options.propagate)
      throw Error(ErrorKind::kUnsupported,
                  "--propagate needs calibration data: give --calib in place of --stats");
  }
  if (calibrate && data == nullptr && options.statistics == nullptr)
    throw Error(ErrorKind::kInvalidArgument, "calibration data is needed (--calib FILE or self)");
  if (options.checkpoints != QuantizeOptions::Checkpoints::kNone && recipes.size() != 1)
    throw Error(ErrorKind::kInvalidArgument, "checkpoints are kept of a single recipe only");
  if (options.propagate && recipes.size() != 1)
    throw Error(ErrorKind::kInvalidArgument,
                "--propagate calibrates on one recipe's own outputs: give one recipe");

  const WeightProvider weights = source.weights();
  const auto text_files =
      source.text_files();  // before any work: a model without a tokenizer makes no engine
  Jobs jobs;
  std::string run;  // empty: nothing is kept
  for (const Recipe& recipe : recipes) {
    const Algorithm& algorithm = find_algorithm(recipe.mode);
    Json calibration;
    if (algorithm.needs_calibration || recipe.scheme.static_activations())
      calibration = options.statistics != nullptr ? description_of(options.statistics->info())
                                                  : data->description();
    // A mixed plan may come from timings, which no second run repeats.
    if (options.checkpoints != QuantizeOptions::Checkpoints::kNone && !recipe.mixed)
      run = run_name(recipe, source, calibration, options);
    std::optional<MixedDecision> mixed;
    if (recipe.mixed)
      mixed = decide_mixed(source, *data, *recipe.mixed, recipe.scheme, options.isa, pool,
                           options.notice);
    EngineManifest manifest =
        make_manifest(recipe, source, std::move(calibration), mixed ? &*mixed : nullptr);
    if (!options.source.empty()) manifest.source = options.source;
    manifest.quantized_on = device_of(options);
    jobs.push_back(std::unique_ptr<Job>(new Job{recipe, algorithm, std::move(manifest)}));
    jobs.back()->summary.output = recipe.output;
    jobs.back()->others = partial_directories(recipe.output);
    if (recipe.salient.decided_by_loss())
      jobs.back()->spool = std::make_unique<Spool>(recipe.output);
    else
      jobs.back()->open_writer(source, weights, pool);
    if (mixed) {
      jobs.back()->schemes = std::move(mixed->schemes);
      jobs.back()->summary.mixed = std::move(mixed->record);
    }
  }
  if (data != nullptr) {
    const Json layouts = to_json(measure_kv_layouts(source.config(), graph, weights, *data,
                                                    options.isa, pool, options.accelerator));
    for (const auto& job : jobs)
      if (job->algorithm.needs_calibration) job->manifest().kv_cache = layouts;
  }

  if (run.empty()) {
    Checkpointer none;
    return run_jobs(jobs, source, weights, text_files, together ? data : nullptr, data, options,
                    none, pool);
  }
  const std::filesystem::path name =
      options.checkpoint_name.empty() ? recipes.front().output : options.checkpoint_name;
  Checkpointer checkpointer(name, run, options.checkpoints);
  remember_directories(checkpointer, *jobs.front(), options);
  if (!checkpointer.discarded().empty())
    jobs.front()->summary.warnings.push_back(
        fmt::format("an interrupted run could not be continued, so it was begun anew: {}",
                    checkpointer.discarded()));
  try {
    std::vector<QuantizeSummary> summaries =
        run_jobs(jobs, source, weights, text_files, together ? data : nullptr, data, options,
                 checkpointer, pool);
    // Whoever named the place has more to do before the engine is in it.
    if (options.checkpoint_name.empty())
      remove_checkpoints(name);
    else
      checkpointer.keep();
    return summaries;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kInterrupted || !checkpointer.keep()) throw;
    throw Error(ErrorKind::kInterrupted,
                "interrupted; the same command goes on from the last finished layer, kept in {} "
                "(remove it to begin anew)",
                checkpointer.directory().string());
  }
}

}  // namespace whit
