// libFuzzer target: what an interrupted quantization left. Three parts with a zero byte between
// them: a JSON merge patch of a valid checkpoint's body, leftovers.json, and bytes written over the
// layers' log, each by place (2 bytes) and value (1). Digests are made to fit. It is begun anew,
// refused with an Error, or continued to an engine; nothing beside it is read or removed.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "base/progress.h"
#include "fuzz/support.h"
#include "quantize/resume.h"

namespace {

namespace fs = std::filesystem;
using namespace whit;
using Files = std::map<std::string, std::string>;

const fs::path& folder() {
  static const fuzz::Directory scratch;
  return scratch.path;
}

CalibrationData tokens() {
  CalibrationData data;
  data.samples = 8;
  data.length = 16;
  data.source = "fuzz";
  for (int i = 0; i < 8 * 16; ++i) data.ids.push_back(i * 37 % 257);
  return data;
}

int quantize() {
  static const CalibrationData data = tokens();
  static ThreadPool pool(1);
  const Recipe recipe{
      .mode = "awq", .scheme = QuantScheme::preset("w4a16", 32), .output = folder() / "engine"};
  return quantize_model(fuzz::tiny_model(), {&recipe, 1}, &data,
                        {.checkpoints = QuantizeOptions::Checkpoints::kEveryLayer}, pool)
      .at(0)
      .resumed_layers;
}

fs::path kept() {
  for (const auto& entry : fs::directory_iterator(folder()))
    if (entry.path().filename().string().starts_with(".engine.resume-")) return entry.path();
  return {};
}

// The directory that a run leaves which is interrupted behind its first layer; its name in `name`.
Files interrupted(std::string& name) {
  bool stop = false;
  const JobScope scope(
      [&stop](const ProgressState& state) {
        stop = stop || (state.title.find("quantizing layer") != std::string_view::npos &&
                        !state.ended && state.done >= 1);
      },
      [&stop] {
        if (stop) throw Error(ErrorKind::kInterrupted, "interrupted");
      });
  try {
    quantize();
  } catch (const Error&) {
  }
  name = kept().filename().string();
  if (name.empty()) std::abort();
  Files files;
  for (const auto& entry : fs::directory_iterator(kept()))
    files[entry.path().filename().string()] = read_file(entry.path());
  return files;
}

// `name` as a file of the checkpoint, its digest in `recorded`.
void record(const Files& files, const std::string& name, Json& recorded) {
  if (const auto found = files.find(name); found != files.end())
    recorded = digest(fuzz::bytes_of(found->second));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static std::string name;
  static const Files valid = interrupted(name);
  const auto parts = fuzz::parts(data, size, 3);
  Files files = valid;
  std::string& log = files.at("layers-0");
  for (std::string_view edits = parts[2]; edits.size() >= 3; edits.remove_prefix(3)) {
    uint16_t place;
    std::memcpy(&place, edits.data(), 2);
    log[place % log.size()] = edits[2];
  }
  if (!parts[1].empty()) files["leftovers.json"] = parts[1];
  const Json index = Json::parse(valid.at("checkpoint.json"));
  auto body = fuzz::patched(Json::parse(index["body"].get<std::string>()), parts[0]);
  if (!body) body = Json::parse(index["body"].get<std::string>());
  // What beside the checkpoint has the digest of one of its files, so that only names protect it.
  files["../outside"] = valid.at("state-1-0");
  files["../.outside"] = "kept";
  if (body->is_object() && (*body)["logs"].is_array())
    for (size_t i = 0; i < (*body)["logs"].size(); ++i) {
      files.emplace(fmt::format("layers-{}", i), log);
      record(files, fmt::format("layers-{}", i), (*body)["logs"][i]);
    }
  if (body->is_object() && (*body)["stream"].is_array())
    for (Json& tensor : (*body)["stream"])
      if (tensor.is_object() && tensor.contains("file") && tensor["file"].is_string())
        record(files, tensor["file"].get<std::string>(), tensor["xxh3_128"]);
  const std::string text = body->dump();
  files["checkpoint.json"] =
      Json{{"body", text}, {"xxh3_128", digest(fuzz::bytes_of(text))}}.dump();

  std::error_code error;
  fs::remove_all(folder() / "engine", error);
  fs::create_directory(folder() / name, error);
  for (const auto& [file, content] : files)
    std::ofstream(folder() / name / file, std::ios::binary) << content;
  try {
    const int resumed = quantize();
    if (resumed < 0 || resumed > 2) std::abort();
    Model::open(folder() / "engine").description();
  } catch (const Error&) {
  }
  for (const char* file : {"outside", ".outside"})
    if (!fs::exists(folder() / file)) std::abort();
  if (const fs::path left = kept(); !left.empty()) fs::remove_all(left, error);
  return 0;
}
