// libFuzzer target: files of whit calibrate. The first byte chooses: arbitrary bytes, or a valid
// file of a tiny model with a patch of its "info" (up to a zero byte) and elements overwritten,
// each by tensor (1 byte), element (2) and value (4). Digests are made to fit. It is refused with
// an Error, or holds statistics from which the model can be quantized to an engine that opens, and
// which can be merged.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "calibrate/coverage.h"
#include "fuzz/support.h"
#include "quantize/quantize.h"

namespace {

namespace fs = std::filesystem;
using namespace whit;

const fs::path& folder() {
  static const fuzz::Directory scratch;
  return scratch.path;
}

std::string valid_file() {
  const Model& model = fuzz::tiny_model();
  CalibrationData data;
  data.samples = 8;
  data.length = 16;
  data.source = "fuzz";
  for (int i = 0; i < 8 * 16; ++i) data.ids.push_back(i * 37 % 257);
  StatisticsInfo info{.model = "tiny", .model_digest = model.checkpoint()->digest()};
  info.data.push_back(data.description());
  const auto windows = calibration_windows(data);
  info.tokens[0] = rows_of(windows, Split::kSearch);
  info.tokens[1] = rows_of(windows, Split::kHeldOut);
  ThreadPool pool(1);
  StatisticsWriter writer(folder() / "valid", model.graph(), info);
  const WeightProvider weights = model.weights();
  LayerStream stream(model.config(), model.graph(), weights, data, cpu::Isa::kPortable, pool);
  for (int layer = 0; layer < model.graph().layers(); ++layer)
    writer.write(stream.observe_sums(layer, weights, LayerStream::Advance::kYes));
  writer.finish();
  return read_file(folder() / "valid");
}

// The valid file with the header's "info" replaced and elements overwritten.
std::string edited(std::string_view patch, std::string_view edits) {
  static const std::string valid = valid_file();
  uint64_t header_bytes;
  std::memcpy(&header_bytes, valid.data(), 8);
  Json header = Json::parse(valid.substr(8, header_bytes));
  std::string& info = header["__metadata__"]["info"].get_ref<std::string&>();
  if (const auto changed = fuzz::patched(Json::parse(info), patch)) info = changed->dump();
  std::string data = valid.substr(8 + header_bytes);
  std::vector<std::pair<uint64_t, uint64_t>> places;  // of tensors
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__")
      places.emplace_back(entry["data_offsets"][0].get<uint64_t>(),
                          entry["data_offsets"][1].get<uint64_t>());
  for (; edits.size() >= 7; edits.remove_prefix(7)) {
    const auto& [begin, end] = places[static_cast<uint8_t>(edits[0]) % places.size()];
    uint16_t element;
    std::memcpy(&element, edits.data() + 1, 2);
    std::memcpy(data.data() + begin + element % ((end - begin) / 4) * 4, edits.data() + 3, 4);
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}

// The file with a digest that fits; as it is where it has no place for one.
std::string digested(std::string file) {
  std::string covered;
  size_t place = 0;
  try {
    const SafetensorsFile read(fuzz::bytes_of(file), "fuzz");
    if (const auto info = read.metadata().find("info"); info != read.metadata().end())
      covered = info->second;
    for (const StoredTensor& tensor : read.tensors()) {
      const auto* data = reinterpret_cast<const char*>(tensor.data.data());
      if (tensor.name == "digest" && tensor.data.size() == 16)
        place = static_cast<size_t>(data - file.data());
      else
        covered.append(data, tensor.data.size());
    }
  } catch (const Error&) {
  }
  const std::string digits = digest(fuzz::bytes_of(covered));
  for (size_t i = 0; place > 0 && i < 16; ++i)
    file[place + i] = static_cast<char>(std::stoi(digits.substr(2 * i, 2), nullptr, 16));
  return file;
}

void use(const StatisticsFile& file, uint8_t choice) {
  const Model& model = fuzz::tiny_model();
  std::vector<Coverage> coverage;
  for (int layer = 0; layer < model.graph().layers(); ++layer)
    for (const InputStats& stats : file.layer(model.graph(), layer)) {
      coverage.push_back(coverage_of(stats, reader_of(model.graph(), stats.value)));
      for (const Tensor* values : {&stats.mean_abs, &stats.max_abs})
        for (const float value : values->f32())
          if (!std::isfinite(value) || value < 0) std::abort();
      for (const SplitStats* split : {&stats.search, &stats.held_out})
        if (split->sample_rows < 0 || split->sample_rows > Observer::kSampleRows) std::abort();
    }
  coverage_warnings(coverage);
  const StatisticsFile* const files[] = {&file};
  merge_statistics(files, model.graph(), folder() / "merged");
  const StatisticsFile again(folder() / "merged");
  again.layer(model.graph(), 0);
  if ((choice & 8) == 0) return;  // what follows takes a hundred times as long

  static constexpr std::pair<const char*, const char*> kRecipes[] = {
      {"awq", "w4a16"}, {"smoothquant", "w8a8"}, {"awq-gptq", "w4a8"}, {"rtn", "w8a8"}};
  const auto& [mode, scheme] = kRecipes[choice % std::size(kRecipes)];
  Recipe recipe{
      .mode = mode, .scheme = QuantScheme::preset(scheme, 32), .output = folder() / "engine"};
  if (choice & 4 && recipe.scheme.name() == "w8a8") {
    recipe.scheme.input_activations->dynamic = false;
    recipe.scheme.input_activations->strategy = QuantStrategy::kTensor;
  }
  static ThreadPool pool(1);
  quantize_model(model, {&recipe, 1}, nullptr, {.statistics = &file}, pool);
  const Model engine = Model::open(recipe.output);
  const WeightProvider weights = engine.weights();
  for (const Node& node : engine.graph().nodes()) {
    if (node.op != Op::kLinear) continue;
    const LinearWeight weight = weights.linear(node);
    std::vector<float> values(static_cast<size_t>(node.n * node.k));
    dequantize_rows(weight, 0, node.n, values.data());
    for (const float value : values)
      if (!std::isfinite(value)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const auto parts = fuzz::parts(data + 1, size - 1, 2);
  const bool arbitrary = data[0] % 4 == 0;
  try {
    write_file(folder() / "stats",
               digested(arbitrary ? std::string(reinterpret_cast<const char*>(data + 1), size - 1)
                                  : edited(parts[0], parts[1])));
    const StatisticsFile file(folder() / "stats");
    use(file, data[0] >> 2);
  } catch (const Error&) {
  }
  return 0;
}
