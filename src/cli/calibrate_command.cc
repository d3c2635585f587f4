// whit calibrate MODEL -o STATS: what quantization needs to know of calibration data, in a file;
// and such files merged.
#include <chrono>

#include "base/progress.h"
#include "base/temporary_file.h"
#include "calibrate/coverage.h"
#include "cli/command.h"
#include "cli/common.h"

namespace whit::cli {
namespace {

struct CalibrateOptions {
  std::string model, output;
  std::vector<std::string> merge;
  bool json = false;
  CalibrationRequest calibration;
  MachineOptions machine;
};

StatisticsInfo info_of(const Model& model, const CalibrationData& data) {
  StatisticsInfo info{.model = model.description(), .model_digest = model.checkpoint()->digest()};
  info.data.push_back(data.description());
  const std::vector<CalibrationWindow> windows = calibration_windows(data);
  info.tokens[0] = rows_of(windows, Split::kSearch);
  info.tokens[1] = rows_of(windows, Split::kHeldOut);
  return info;
}

// Returns the data's own warnings.
std::vector<std::string> calibrate_on_data(const CalibrateOptions& user, const Model& model,
                                           const std::filesystem::path& path) {
  Machine machine(user.machine);
  const CalibrationData data = calibration_data(model, user.calibration, machine.isa, machine.pool);
  const Graph& graph = model.graph();
  const WeightProvider weights = model.weights();
  StatisticsWriter writer(path, graph, info_of(model, data));
  std::unique_ptr<Accelerator> accelerator;
  if (machine.backend == Backend::kCuda) accelerator = open_cuda_accelerator(machine.pool);
  LayerStream stream(model.config(), graph, weights, data, machine.isa, machine.pool,
                     accelerator.get());
  Progress progress("calibrating layer", graph.layers());
  for (int layer = 0; layer < graph.layers(); ++layer) {
    writer.write(stream.observe_sums(layer, weights, LayerStream::Advance::kYes));
    progress.update(layer + 1);
  }
  writer.finish();
  return data.warnings;
}

void merge(const CalibrateOptions& user, const Model& model, const std::filesystem::path& path) {
  std::vector<std::unique_ptr<StatisticsFile>> files;
  std::vector<const StatisticsFile*> pointers;
  for (const std::string& name : user.merge) {
    files.push_back(std::make_unique<StatisticsFile>(name));
    files.back()->check_model(model.checkpoint()->digest());
    pointers.push_back(files.back().get());
  }
  merge_statistics(pointers, model.graph(), path);
}

int calibrate(const CalibrateOptions& user) {
  const auto start = std::chrono::steady_clock::now();
  const Model model = Model::open(user.model);
  if (model.checkpoint() == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} is quantized already; calibrate the Hugging Face directory or GGUF file it was "
                "made from",
                model.description());
  if (std::filesystem::is_directory(user.output))
    throw Error(ErrorKind::kInvalidArgument, "-o {}: a directory; give the name of a file",
                user.output);
  TemporaryFile temporary(user.output);
  std::vector<std::string> warnings;
  if (user.merge.empty())
    warnings = calibrate_on_data(user, model, temporary.path());
  else
    merge(user, model, temporary.path());
  const StatisticsFile file(temporary.path());
  std::vector<Coverage> coverage;
  for (int layer = 0; layer < model.graph().layers(); ++layer)
    for (const InputStats& stats : file.layer(model.graph(), layer))
      coverage.push_back(coverage_of(stats, reader_of(model.graph(), stats.value)));
  for (std::string& warning : coverage_warnings(coverage)) warnings.push_back(std::move(warning));
  temporary.commit();

  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(user.output));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const std::string& warning : warnings) fmt::print(stderr, "whit: warning: {}\n", warning);
  const StatisticsInfo& info = file.info();
  if (user.json) {
    Json inputs = Json::array();
    for (const Coverage& each : coverage)
      inputs.push_back({{"input_of", each.name},
                        {"channels", each.channels},
                        {"few_tokens", each.few},
                        {"dead", each.dead},
                        {"least_effective_tokens", each.least},
                        {"gram_tokens", each.gram_tokens}});
    print_json({{"output", user.output},
                {"bytes", bytes},
                {"data", info.data},
                {"tokens", info.tokens[0] + info.tokens[1]},
                {"held_out_tokens", info.tokens[1]},
                {"warnings", warnings},
                {"inputs", inputs},
                {"seconds", seconds},
                {"peak_memory_bytes", peak_memory_bytes()}});
    return 0;
  }
  fmt::print("{}\n{}, {} tokens ({} held out) of {} sets; {:.1f} s, peak memory {}\n", user.output,
             format_bytes(static_cast<double>(bytes)), info.tokens[0] + info.tokens[1],
             info.tokens[1], info.data.size(), seconds,
             format_bytes(static_cast<double>(peak_memory_bytes())));
  return 0;
}

}  // namespace

Action add_calibrate(CLI::App& app) {
  auto user = std::make_shared<CalibrateOptions>();
  add_model(app, user->model);
  app.add_option("-o,--output", user->output, "The file to write; an older one is replaced")
      ->required();
  add_calibration(app, user->calibration);
  app.add_option("--merge", user->merge, "Statistics files of this model to make one of")
      ->excludes("--calib")
      ->expected(1, 1 << 16);
  user->machine.add_to(app);
  user->machine.add_backend(app, "Where the layers run: cpu, or cuda for an NVIDIA GPU");
  add_json(app, user->json);
  app.footer(R"(
'whit quantize MODEL --stats FILE' starts from such a file and gives the engine that calibrating on the same data gives, byte
for byte; every mode but auto (which also runs the data through the quantized model) and every scheme can. Files of
several texts merge into one that stands for all of them.

Examples:
  whit calibrate MODEL --calib prose.txt -o prose.stats
  whit calibrate MODEL --merge prose.stats code.stats -o both.stats
  whit quantize MODEL --stats both.stats -o OUT)");
  return [user] { return calibrate(*user); };
}

}  // namespace whit::cli
