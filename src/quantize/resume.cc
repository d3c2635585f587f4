#include "quantize/resume.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

namespace whit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "checkpoint.json";
constexpr const char* kLock = "lock";
constexpr const char* kLeftovers = "leftovers.json";

std::string digest_of(const std::string& text) {
  return digest({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Json to_json(const Coverage& coverage) {
  return {coverage.name,  coverage.channels, coverage.few,        coverage.dead,
          coverage.least, coverage.worst,    coverage.gram_tokens};
}

Coverage coverage_from_json(const Json& json, const std::string& where) {
  const bool good = json.is_array() && json.size() == 7 && json[0].is_string() &&
                    std::all_of(json.begin() + 1, json.end(),
                                [](const Json& value) { return value.is_number(); });
  if (!good) throw Error(ErrorKind::kInvalidData, "{}: \"coverage\" holds no coverage", where);
  return {.name = json.at(0).get<std::string>(),
          .channels = json.at(1).get<int64_t>(),
          .few = json.at(2).get<int64_t>(),
          .dead = json.at(3).get<int64_t>(),
          .least = json.at(4).get<double>(),
          .worst = json.at(5).get<int64_t>(),
          .gram_tokens = json.at(6).get<int64_t>()};
}

// Checkpoint::digest() reads a kilobyte of each tensor; an edit elsewhere shows in a file's date.
Json files_of(const Checkpoint& checkpoint) {
  std::set<fs::path> paths;
  for (const std::string& name : checkpoint.names())
    if (const StoredTensor& tensor = checkpoint.get(name); tensor.file != nullptr)
      paths.insert(tensor.file->path());
  Json files = Json::array();
  for (const auto& path : paths)
    files.push_back({fs::absolute(path).string(), fs::file_size(path),
                     fs::last_write_time(path).time_since_epoch().count()});
  return files;
}

fs::path absolute_name(const fs::path& output) {
  fs::path path = fs::absolute(output).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

std::string prefix_of(const fs::path& output) {
  return fmt::format(".{}.resume-", output.filename().string());
}

// The locked file directory/lock; −1 where another process holds it, or where it cannot be made.
int lock_directory(const fs::path& directory) {
  const int fd =
      ::open((directory / kLock).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  if (fd >= 0) ::close(fd);
  return -1;
}

bool is_partial(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with('.') && name.find(".partial-") != std::string::npos;
}

std::string log_file(int index) { return fmt::format("layers-{}", index); }
std::string state_file(int64_t done, size_t index) {
  return fmt::format("state-{}-{}", done, index);
}

const Json& list_in(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array())
    throw Error(ErrorKind::kInvalidData, "{}: \"{}\" is no list", where, key);
  return *found;
}

}  // namespace

Json to_json(const Recipe& recipe) {
  Json json = {
      {"mode", recipe.mode}, {"scheme", whit::to_json(recipe.scheme)}, {"head", recipe.head}};
  if (recipe.alpha) json["alpha"] = *recipe.alpha;
  if (recipe.salient.share > 0)
    json["salient"] = {recipe.salient.share, recipe.salient.decided_by_loss()};
  return json;
}

std::string run_name(const Recipe& recipe, const Model& source, const Json& calibration,
                     const QuantizeOptions& options) {
  const Model& original = options.original != nullptr ? *options.original : source;
  return digest_of(Json{{"version", WHIT_VERSION},
                        {"model", source.checkpoint()->digest()},
                        {"files", files_of(*original.checkpoint())},
                        {"recipe", to_json(recipe)},
                        {"calibration", calibration},
                        {"isa", std::string(cpu::name(options.isa))},
                        {"accelerated", options.accelerator != nullptr},
                        {"propagate", options.propagate},
                        {"statistics", options.statistics != nullptr}}
                       .dump(-1, ' ', false, Json::error_handler_t::replace))
      .substr(0, 16);
}

Checkpointer::Checkpointer(const fs::path& output, const std::string& run,
                           QuantizeOptions::Checkpoints when)
    : when_(when) {
  const fs::path target = absolute_name(output);
  directory_ = target.parent_path() / (prefix_of(target) + run);
  std::error_code error;
  fs::create_directories(directory_, error);
  if (fs::symlink_status(directory_, error).type() != fs::file_type::directory)
    throw Error(ErrorKind::kIo, "cannot create directory {}: {}", directory_.string(),
                error.message());
  lock_ = lock_directory(directory_);
  if (lock_ < 0)
    throw Error(ErrorKind::kInvalidArgument, "another process is writing {} with the same settings",
                target.string());
  remove_leftovers(target);
  try {
    open();
  } catch (const std::exception& error_of_open) {
    discarded_ = error_of_open.what();
    found_ = nullptr;
    logs_ = Json::array();
    files_.clear();
    logged_ = 0;
  }
  if (found_.is_null()) clear();
}

void Checkpointer::remember(const std::vector<fs::path>& directories) {
  if (directory_.empty()) return;
  Json names = Json::array();
  for (const fs::path& path : directories) names.push_back(path.filename().string());
  write_file(directory_ / kLeftovers, names.dump());
}

void Checkpointer::remove_leftovers(const fs::path& target) {
  std::error_code error;
  const fs::path list = directory_ / kLeftovers;
  if (!fs::exists(list, error)) return;
  try {
    for (const Json& name : parse_json(read_file(list, 1 << 20), list.string())) {
      const fs::path path = target.parent_path() / name.get<std::string>();
      if (path.parent_path() == target.parent_path() && is_partial(path))
        fs::remove_all(path, error);
    }
  } catch (const std::exception&) {  // what cannot be named stays
  }
}

Checkpointer::~Checkpointer() {
  std::error_code error;
  if (!directory_.empty() && !kept_) fs::remove_all(directory_, error);
  if (lock_ >= 0) ::close(lock_);
}

void Checkpointer::clear() {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(directory_))
    if (entry.path().filename() != kLock) all.push_back(entry.path());
  for (const fs::path& path : all) fs::remove_all(path);
}

std::string Checkpointer::write_blob(const std::string& name, std::span<const uint8_t> bytes) {
  OutputFile file(directory_ / name);
  file.write(bytes.data(), bytes.size());
  file.close();
  return digest(bytes);
}

void Checkpointer::check_blob(const std::string& name, const Json& wanted) const {
  const MappedFile file(directory_ / name);
  if (!wanted.is_string() || digest(file.bytes()) != wanted.get<std::string>())
    throw Error(ErrorKind::kInvalidData, "{}: not what the checkpoint recorded",
                (directory_ / name).string());
}

void Checkpointer::open() {
  const fs::path path = directory_ / kIndex;
  const std::string where = path.string();
  std::error_code error;
  if (!fs::exists(path, error)) return;  // ended before its first checkpoint
  const Json file = parse_json(read_file(path, 256 << 20), where);
  const auto body = json_get<std::string>(file, "body", where);
  if (digest_of(body) != json_get<std::string>(file, "xxh3_128", where))
    throw Error(ErrorKind::kInvalidData, "{}: not what was written", where);
  found_ = parse_json(body, where);
  const auto done = json_get<int64_t>(found_, "done", where);
  logs_ = list_in(found_, "logs", where);
  if (done < 1 || logs_.empty() || std::ssize(logs_) > done)
    throw Error(ErrorKind::kInvalidData, "{}: {} logs of {} layers done", where, logs_.size(),
                done);
  for (const Json& log : logs_) check_blob(log_file(logged_++), log);
  for (const Json& tensor : list_in(found_, "stream", where)) {
    // The names are our own: they are read and, behind the next checkpoint, removed.
    if (const auto name = json_get<std::string>(tensor, "file", where);
        name != state_file(done, files_.size()))
      throw Error(ErrorKind::kInvalidData, "{}: \"{}\" is no name of hidden states", where, name);
    files_.push_back(state_file(done, files_.size()));
    check_blob(files_.back(), tensor.value("xxh3_128", Json()));
    const Json& shape = list_in(tensor, "shape", where);
    if (!std::all_of(shape.begin(), shape.end(),
                     [](const Json& extent) { return extent.is_number_integer(); }))
      throw Error(ErrorKind::kInvalidData, "{}: \"shape\" holds no numbers", where);
  }
  for (const Json& report : list_in(found_, "reports", where))
    group_report_from_json(report, where);
  for (const Json& each : list_in(found_, "coverage", where)) coverage_from_json(each, where);
  for (const Json& profile : list_in(found_, "profiles", where))
    if (!profile.is_object())
      throw Error(ErrorKind::kInvalidData, "{}: \"profiles\" holds no profile", where);
}

int Checkpointer::restore(LayerOutput& output, RunState state) {
  if (found_.is_null()) return 0;
  // Part of it may be in the output by now; the next run finds nothing and begins anew.
  const auto refuse = [this](const std::string& name, const std::string& why) {
    throw Error(ErrorKind::kInvalidData,
                "{}: {}: what an interrupted run left is damaged and has been removed; give the "
                "same command again",
                (directory_ / name).string(), why);
  };
  const auto done = found_["done"].get<int64_t>();
  if (done > output.graph().layers())
    refuse(kIndex, fmt::format("{} layers done, of {}", done, output.graph().layers()));
  if (files_.size() != state.stream.size())
    refuse(kIndex, fmt::format("{} hidden states, not {}", files_.size(), state.stream.size()));
  for (int index = 0; index < logged_; ++index) try {
      output.replay(MappedFile(directory_ / log_file(index)).bytes());
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kIo) throw;
      refuse(log_file(index), error.what());
    }
  log_.clear();
  for (const Json& report : found_["reports"])
    state.reports.push_back(group_report_from_json(report, kIndex));
  for (const Json& each : found_["coverage"])
    state.coverage.push_back(coverage_from_json(each, kIndex));
  for (const Json& profile : found_["profiles"]) state.profiles.push_back(profile);
  for (size_t i = 0; i < state.stream.size(); ++i) {
    const MappedFile file(directory_ / files_[i]);
    if (found_["stream"][i]["shape"].get<Shape>() != state.stream[i]->shape() ||
        file.bytes().size() != state.stream[i]->size() * sizeof(float))
      refuse(files_[i], "hidden states of another shape");
    std::memcpy(state.stream[i]->data<void>(), file.bytes().data(), file.bytes().size());
  }
  return static_cast<int>(done);
}

void Checkpointer::layer_done(int done, const RunState& state) {
  if (directory_.empty()) return;
  const auto start = Clock::now();
  if (when_ == QuantizeOptions::Checkpoints::kPaced && start - last_ < 20 * cost_)
    return;  // its log goes with that of the next one that is kept
  logs_.push_back(write_blob(log_file(logged_++), log_));
  log_.clear();
  Json body = {{"logs", logs_},
               {"done", done},
               {"reports", Json::array()},
               {"coverage", Json::array()},
               {"profiles", state.profiles},
               {"stream", Json::array()}};
  for (const GroupReport& report : state.reports) body["reports"].push_back(whit::to_json(report));
  for (const Coverage& each : state.coverage) body["coverage"].push_back(to_json(each));
  std::vector<std::string> files;
  for (const Tensor* tensor : state.stream) {
    files.push_back(state_file(done, files.size()));
    const std::string recorded =
        write_blob(files.back(), {tensor->data<uint8_t>(), tensor->size() * sizeof(float)});
    body["stream"].push_back(
        {{"file", files.back()}, {"shape", tensor->shape()}, {"xxh3_128", recorded}});
  }
  const std::string text = body.dump();
  write_file(directory_ / kIndex, Json{{"body", text}, {"xxh3_128", digest_of(text)}}.dump());
  // The old states go only when the new index is in place.
  std::error_code error;
  for (const std::string& name : files_) fs::remove(directory_ / name, error);
  files_ = std::move(files);
  last_ = Clock::now();
  cost_ = last_ - start;
}

bool Checkpointer::keep() {
  if (logs_.empty()) return false;
  kept_ = true;
  return true;
}

std::vector<fs::path> partial_directories(const fs::path& output) {
  const fs::path target = absolute_name(output);
  const std::string prefix = fmt::format(".{}.partial-", target.filename().string());
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(target.parent_path(), error))
    if (entry.path().filename().string().starts_with(prefix)) found.push_back(entry.path());
  return found;
}

void remove_checkpoints(const fs::path& output) {
  const fs::path target = absolute_name(output);
  std::error_code error;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(target.parent_path(), error))
    if (entry.path().filename().string().starts_with(prefix_of(target)) &&
        entry.symlink_status(error).type() == fs::file_type::directory)
      found.push_back(entry.path());
  for (const fs::path& path : found) {
    const int lock = lock_directory(path);
    if (lock < 0) continue;
    fs::remove_all(path, error);
    ::close(lock);
  }
}

}  // namespace whit
