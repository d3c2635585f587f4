#include "calibrate/statistics_file.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/checked.h"
#include "base/progress.h"
#include "calibrate/coverage.h"

namespace whit {
namespace {

constexpr int64_t kVersion = 1;
constexpr const char* kFormat = "whit-calibration";
constexpr const char* kDigest = "digest";
constexpr const char* kSplits[] = {"search", "held_out"};
constexpr int64_t kMaxTokens = int64_t{1} << 48;

class Hasher {
 public:
  Hasher() { XXH3_128bits_reset(&state_); }
  void add(std::span<const uint8_t> bytes) {
    XXH3_128bits_update(&state_, bytes.data(), bytes.size());
  }
  void add(std::string_view text) {
    add({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  std::array<uint8_t, 16> result() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_));
    std::array<uint8_t, 16> bytes{};
    std::memcpy(bytes.data(), canonical.digest, bytes.size());
    return bytes;
  }

 private:
  XXH3_state_t state_;
};

int64_t triangle(int64_t k) { return k * (k + 1) / 2; }
int64_t rows_stored(int64_t tokens) { return std::min(Observer::kSampleRows, tokens); }

std::vector<ValueId> inputs_of(const Graph& graph, int layer) {
  std::vector<ValueId> inputs;
  for (const ScalingGroup& group : scaling_groups(graph, graph.layer(layer)))
    inputs.push_back(group.input);
  return inputs;
}

std::string prefix_of(const Graph& graph, ValueId value) {
  return reader_of(graph, value) + ".input.";
}

std::vector<SafetensorsWriter::Entry> entries_of(const Graph& graph, const int64_t (&tokens)[2]) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (int layer = 0; layer < graph.layers(); ++layer)
    for (const ValueId value : inputs_of(graph, layer)) {
      const std::string prefix = prefix_of(graph, value);
      const int64_t k = graph.value(value).width;
      entries.push_back({prefix + "mean_abs", StorageType::kF32, {k}});
      entries.push_back({prefix + "max_abs", StorageType::kF32, {k}});
      for (int split = 0; split < 2; ++split) {
        if (tokens[split] == 0) continue;
        const std::string name = prefix + kSplits[split];
        entries.push_back({name + ".gram", StorageType::kF32, {triangle(k)}});
        entries.push_back({name + ".sample", StorageType::kF32, {rows_stored(tokens[split]), k}});
      }
      entries.push_back({prefix + "counts", StorageType::kI64, {6}});
    }
  entries.push_back({kDigest, StorageType::kU8, {16}});
  return entries;
}

Json to_json(const StatisticsInfo& info) {
  return {{"model", info.model},
          {"model_digest", info.model_digest},
          {"data", info.data},
          {"tokens", {info.tokens[0], info.tokens[1]}}};
}

StatisticsInfo info_from_json(const Json& json, const std::string& where) {
  StatisticsInfo info;
  info.model = json_get<std::string>(json, "model", where);
  info.model_digest = json_get<std::string>(json, "model_digest", where);
  info.data = json.value("data", Json::array());
  const Json tokens = json.value("tokens", Json::array());
  bool good = info.data.is_array() && !info.data.empty() && tokens.is_array() && tokens.size() == 2;
  const auto is_text = [](const Json& object, const char* key) {
    return object.value(key, Json("")).is_string();
  };
  for (const Json& each : info.data)
    good = good && each.is_object() && is_text(each, "source") && is_text(each, "digest") &&
           each.value("samples", Json(0)).is_number_integer();
  for (size_t i = 0; good && i < 2; ++i) {
    good = tokens[i].is_number_integer() && tokens[i] >= 0 && tokens[i] <= kMaxTokens;
    if (good) info.tokens[i] = tokens[i].get<int64_t>();
  }
  if (!good || info.tokens[0] == 0)
    throw Error(ErrorKind::kInvalidData, "{}: \"info\" does not describe calibration data", where);
  return info;
}

// What a file says of one input, checked.
class Reader {
 public:
  Reader(const SafetensorsFile& file, const StatisticsInfo& info, const Graph& graph)
      : file_(file), info_(info), graph_(graph) {}

  InputStats read(ValueId value) const {
    const std::string prefix = prefix_of(graph_, value);
    InputStats stats;
    stats.value = value;
    stats.k = graph_.value(value).width;
    stats.mean_abs = magnitudes(prefix + "mean_abs", stats.k);
    stats.max_abs = magnitudes(prefix + "max_abs", stats.k);
    int64_t counts[6];
    std::memcpy(counts, stored(prefix + "counts", StorageType::kI64, {6}).data.data(),
                sizeof(counts));
    SplitStats* const splits[] = {&stats.search, &stats.held_out};
    for (int split = 0; split < 2; ++split)
      read_split(prefix + kSplits[split], stats.k, info_.tokens[split], counts + 3 * split,
                 *splits[split]);
    return stats;
  }

 private:
  [[noreturn]] void refuse(const std::string& name, std::string_view what) const {
    throw Error(ErrorKind::kInvalidData,
                "{}: {} {}: the file is damaged or of another model; run whit calibrate again",
                file_.where(), name, what);
  }

  void read_split(const std::string& name, int64_t k, int64_t tokens, const int64_t* counts,
                  SplitStats& split) const {
    const int64_t rows = rows_stored(tokens);
    if (counts[0] != tokens || counts[1] < 0 || counts[1] > tokens || counts[2] < 0 ||
        counts[2] > rows || (tokens > 0 && counts[1] == 0))
      refuse(name, "has counts that contradict each other");
    split.tokens = tokens;
    split.gram_tokens = counts[1];
    split.sample_rows = counts[2];
    split.gram = Tensor::zeros(DType::kF32, {k, k});
    split.sample = Tensor::zeros(DType::kF32, {Observer::kSampleRows, k});
    if (tokens == 0) return;
    const Tensor packed = tensor(name + ".gram", {triangle(k)});
    const float* from = packed.data<float>();
    float* gram = split.gram.data<float>();
    for (int64_t i = 0; i < k; from += k - i, ++i) {
      std::memcpy(gram + i * k + i, from, (k - i) * 4);
      if (*from < 0) refuse(name + ".gram", "has a negative sum of squares");
    }
    const Tensor sample = tensor(name + ".sample", {rows, k});
    std::memcpy(split.sample.data<float>(), sample.data<float>(), rows * k * 4);
  }

  const StoredTensor& stored(const std::string& name, StorageType type, const Shape& shape) const {
    const StoredTensor* found = file_.find(name);
    if (found == nullptr) refuse(name, "is missing");
    if (found->type != type || found->shape != shape)
      refuse(name, fmt::format("is {} {} where {} {} is expected", whit::name(found->type),
                               to_string(found->shape), whit::name(type), to_string(shape)));
    return *found;
  }

  Tensor magnitudes(const std::string& name, int64_t k) const {
    Tensor values = tensor(name, {k});
    for (const float value : values.f32())
      if (value < 0) refuse(name, "holds a negative magnitude");
    return values;
  }

  Tensor tensor(const std::string& name, const Shape& shape) const {
    const StoredTensor& found = stored(name, StorageType::kF32, shape);
    Tensor tensor(DType::kF32, shape);
    std::memcpy(tensor.data<void>(), found.data.data(), found.data.size());
    for (const float value : tensor.f32())
      if (!std::isfinite(value)) refuse(name, "holds a value that is not finite");
    if (found.file != nullptr) found.file->drop_pages(found.data);
    return tensor;
  }

  const SafetensorsFile& file_;
  const StatisticsInfo& info_;
  const Graph& graph_;
};

}  // namespace

struct StatisticsWriter::Impl {
  Impl(const std::filesystem::path& path, const Graph& of, const StatisticsInfo& about)
      : graph(of),
        info(about),
        text(to_json(about).dump(-1, ' ', false, Json::error_handler_t::replace)),
        writer(path, entries_of(of, info.tokens),
               {{"format", kFormat}, {"version", fmt::format("{}", kVersion)}, {"info", text}}) {
    hasher.add(text);
  }

  void put(const std::string& name, const void* data, int64_t bytes) {
    const std::span<const uint8_t> span(static_cast<const uint8_t*>(data),
                                        static_cast<size_t>(bytes));
    writer.write(name, span);
    hasher.add(span);
  }

  const Graph& graph;
  const StatisticsInfo info;
  const std::string text;
  SafetensorsWriter writer;
  Hasher hasher;
};

StatisticsWriter::StatisticsWriter(const std::filesystem::path& path, const Graph& graph,
                                   const StatisticsInfo& info)
    : impl_(std::make_unique<Impl>(path, graph, info)) {}
StatisticsWriter::~StatisticsWriter() = default;

void StatisticsWriter::write(const std::vector<InputStats>& sums) {
  for (const InputStats& stats : sums) {
    const std::string prefix = prefix_of(impl_->graph, stats.value);
    const int64_t k = stats.k;
    impl_->put(prefix + "mean_abs", stats.mean_abs.data<void>(), k * 4);
    impl_->put(prefix + "max_abs", stats.max_abs.data<void>(), k * 4);
    const SplitStats* const splits[] = {&stats.search, &stats.held_out};
    int64_t counts[6];
    for (int i = 0; i < 2; ++i) {
      const SplitStats& split = *splits[i];
      counts[3 * i] = split.tokens;
      counts[3 * i + 1] = split.gram_tokens;
      counts[3 * i + 2] = split.sample_rows;
      if (impl_->info.tokens[i] == 0) continue;
      const std::string name = prefix + kSplits[i];
      for (int64_t row = 0; row < k; ++row)
        impl_->put(name + ".gram", split.gram.data<float>() + row * k + row, (k - row) * 4);
      // Rows that were not drawn are whatever memory held.
      const int64_t rows = rows_stored(impl_->info.tokens[i]);
      const std::vector<float> zeros(k, 0.0f);
      for (int64_t row = 0; row < rows; ++row)
        impl_->put(name + ".sample",
                   row < split.sample_rows ? split.sample.data<float>() + row * k : zeros.data(),
                   k * 4);
    }
    impl_->put(prefix + "counts", counts, sizeof(counts));
  }
}

void StatisticsWriter::finish() {
  const auto digest = impl_->hasher.result();
  impl_->writer.write(kDigest, digest);
  impl_->writer.finish();
}

int64_t StatisticsWriter::bytes(const Graph& graph, const int64_t (&tokens)[2]) {
  int64_t total = 0;
  for (const auto& entry : entries_of(graph, tokens))
    total += element_count(entry.shape) * block_bytes(entry.type);
  return total;
}

StatisticsFile::StatisticsFile(const std::filesystem::path& path)
    : file_(std::make_unique<SafetensorsFile>(path)) {
  const auto& metadata = file_->metadata();
  const auto value = [&metadata](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (value("format") != kFormat)
    throw Error(ErrorKind::kInvalidData, "{}: not a file of whit calibrate", where());
  if (value("version") != fmt::format("{}", kVersion))
    throw Error(
        ErrorKind::kUnsupported,
        "{}: statistics of version \"{}\"; this program reads version {}: run whit calibrate "
        "again",
        where(), value("version").substr(0, 20), kVersion);
  info_ = info_from_json(parse_json(value("info"), where()), where());
  Hasher hasher;
  hasher.add(std::string_view(value("info")));
  const StoredTensor* recorded = nullptr;
  for (const StoredTensor& tensor : file_->tensors()) {
    if (tensor.name == kDigest)
      recorded = &tensor;
    else
      hasher.add(tensor.data);
    if (tensor.file != nullptr) tensor.file->drop_pages(tensor.data);
  }
  const auto digest = hasher.result();
  if (recorded == nullptr || recorded->data.size() != digest.size() ||
      std::memcmp(recorded->data.data(), digest.data(), digest.size()) != 0)
    throw Error(ErrorKind::kInvalidData,
                "{}: the content is not what its digest says: copy the file again, or run whit "
                "calibrate again",
                where());
}

void StatisticsFile::check_model(const std::string& model_digest) const {
  if (info_.model_digest != model_digest)
    throw Error(ErrorKind::kInvalidArgument,
                "{} holds statistics of another model ({}); run whit calibrate on this one",
                where(), info_.model);
}

std::vector<InputStats> StatisticsFile::sums(const Graph& graph, int layer) const {
  const Reader reader(*file_, info_, graph);
  std::vector<InputStats> all;
  for (const ValueId value : inputs_of(graph, layer)) all.push_back(reader.read(value));
  return all;
}

std::vector<InputStats> StatisticsFile::layer(const Graph& graph, int layer) const {
  std::vector<InputStats> stats = sums(graph, layer);
  finish_statistics(stats);
  return stats;
}

namespace {

// Of one split of one input: `parts` into the first of them.
SplitStats merged(std::span<SplitStats* const> parts, int64_t k) {
  SplitStats all;
  all.gram = Tensor::zeros(DType::kF32, {k, k});
  all.sample = Tensor::zeros(DType::kF32, {Observer::kSampleRows, k});
  bool same_share = true;  // of the tokens that the Gram matrices took
  for (const SplitStats* part : parts) {
    all.tokens += part->tokens;
    same_share = same_share &&
                 static_cast<double>(part->tokens) * static_cast<double>(parts[0]->gram_tokens) ==
                     static_cast<double>(parts[0]->tokens) * static_cast<double>(part->gram_tokens);
  }
  const int64_t rows = rows_stored(all.tokens);
  int64_t before = 0;
  for (const SplitStats* part : parts) {
    if (part->tokens == 0) continue;
    const auto weight = same_share ? 1.0f
                                   : static_cast<float>(static_cast<double>(part->tokens) /
                                                        static_cast<double>(part->gram_tokens));
    all.gram_tokens += same_share ? part->gram_tokens : part->tokens;
    const float* from = part->gram.data<float>();
    float* to = all.gram.data<float>();
    for (int64_t i = 0; i < k * k; ++i) to[i] += weight * from[i];
    // Quotas by cumulative tokens, so that they sum to `rows`.
    const auto until = [&](int64_t tokens) {
      return static_cast<int64_t>(static_cast<double>(rows) * static_cast<double>(tokens) /
                                  static_cast<double>(all.tokens));
    };
    const int64_t quota = std::min(until(before + part->tokens) - until(before), part->sample_rows);
    before += part->tokens;
    for (int64_t row = 0; row < quota; ++row)
      std::memcpy(all.sample.data<float>() + all.sample_rows++ * k,
                  part->sample.data<float>() + row * part->sample_rows / quota * k, k * 4);
  }
  return all;
}

InputStats merged(std::vector<InputStats>& parts) {
  InputStats all = std::move(parts.front());
  std::vector<SplitStats*> search = {&all.search}, held_out = {&all.held_out};
  for (size_t p = 1; p < parts.size(); ++p) {
    for (int64_t i = 0; i < all.k; ++i) {
      all.mean_abs.data<float>()[i] += parts[p].mean_abs.data<float>()[i];
      float& most = all.max_abs.data<float>()[i];
      most = std::max(most, parts[p].max_abs.data<float>()[i]);
    }
    search.push_back(&parts[p].search);
    held_out.push_back(&parts[p].held_out);
  }
  SplitStats both[] = {merged(search, all.k), merged(held_out, all.k)};
  all.search = std::move(both[0]);
  all.held_out = std::move(both[1]);
  return all;
}

}  // namespace

void merge_statistics(std::span<const StatisticsFile* const> files, const Graph& graph,
                      const std::filesystem::path& output) {
  StatisticsInfo info = files.front()->info();
  info.data = Json::array();
  info.tokens[0] = info.tokens[1] = 0;
  std::set<std::string> seen;
  for (const StatisticsFile* file : files) {
    file->check_model(info.model_digest);
    for (int split = 0; split < 2; ++split) info.tokens[split] += file->info().tokens[split];
    for (const Json& data : file->info().data) {
      if (!seen.insert(data.value("digest", Json()).dump()).second)
        throw Error(ErrorKind::kInvalidArgument,
                    "{}: its data set {} is in another of the files already: it would count twice",
                    file->where(), data.value("source", Json()).dump());
      info.data.push_back(data);
    }
  }
  StatisticsWriter writer(output, graph, info);
  Progress progress("merging layer", graph.layers());
  for (int layer = 0; layer < graph.layers(); ++layer) {
    std::vector<std::vector<InputStats>> of_files;
    for (const StatisticsFile* file : files) of_files.push_back(file->sums(graph, layer));
    std::vector<InputStats> sums;
    for (size_t i = 0; i < of_files.front().size(); ++i) {
      std::vector<InputStats> parts;
      for (auto& of_file : of_files) parts.push_back(std::move(of_file[i]));
      sums.push_back(merged(parts));
    }
    writer.write(sums);
    progress.update(layer + 1);
  }
  writer.finish();
}

}  // namespace whit
