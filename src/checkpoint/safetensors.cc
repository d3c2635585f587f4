#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"
#include "base/json.h"

namespace whit {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 8;
constexpr uint64_t kMaxElements = static_cast<uint64_t>(INT64_MAX) / 8;
constexpr int kMaxHeaderDepth = 4;
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kPadPrefix = "__pad.";

// A header keeps its entries sorted by name here: ordered_json searches linearly, which a hostile
// header with a million entries would make quadratic.
using SortedJson = nlohmann::json;

// Refuses repeated keys and deep nesting, which the document does not show any more. The parser's
// callback could do it while it builds the document, but makes it look at all entries again at the
// end of each.
class HeaderCheck : public nlohmann::json_sax<SortedJson> {
 public:
  explicit HeaderCheck(const std::string& where) : where_(where) {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    enter();
    keys_[depth_].clear();
    return true;
  }
  bool key(string_t& name) override {
    if (!keys_[depth_].insert(name).second)
      throw Error(ErrorKind::kInvalidData, "{}: \"{}\" appears twice in the safetensors header",
                  where_, name);
    return true;
  }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override {
    enter();
    return true;
  }
  bool end_array() override { return leave(); }
  bool parse_error(size_t, const std::string&, const SortedJson::exception& error) override {
    throw Error(ErrorKind::kInvalidData, "{}: the safetensors header is not valid JSON: {}", where_,
                error.what());
  }

 private:
  void enter() {
    if (++depth_ > kMaxHeaderDepth)
      throw Error(ErrorKind::kInvalidData, "{}: the safetensors header is nested too deeply",
                  where_);
  }
  bool leave() {
    --depth_;
    return true;
  }

  const std::string& where_;
  int depth_ = 0;
  std::unordered_set<std::string> keys_[kMaxHeaderDepth + 1];  // of the open object at each depth
};

SortedJson parse_header(std::string_view text, const std::string& where) {
  HeaderCheck check(where);
  SortedJson::sax_parse(text, &check);
  return SortedJson::parse(text);
}

uint64_t unsigned_at(const SortedJson& value, const std::string& where, std::string_view tensor,
                     std::string_view field) {
  if (!value.is_number_unsigned())
    throw Error(ErrorKind::kInvalidData, "{}: tensor {}: {} must hold non-negative integers", where,
                tensor, field);
  return value.get<uint64_t>();
}

const SortedJson& field_of(const SortedJson& entry, const char* field, const std::string& where,
                           std::string_view tensor) {
  const auto found = entry.is_object() ? entry.find(field) : entry.end();
  if (!entry.is_object() || found == entry.end())
    throw Error(ErrorKind::kInvalidData,
                "{}: tensor {}: \"{}\" is missing from the safetensors header", where, tensor,
                field);
  return *found;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_unique<MappedFile>(path)), where_(path.string()) {
  parse(file_->bytes());
}

SafetensorsFile::SafetensorsFile(std::span<const uint8_t> bytes, std::string where)
    : where_(std::move(where)) {
  parse(bytes);
}

void SafetensorsFile::parse(std::span<const uint8_t> bytes) {
  if (bytes.size() < kLengthBytes)
    throw Error(ErrorKind::kInvalidData,
                "{}: {} bytes are too few for a safetensors file; it is empty or truncated, "
                "download it again",
                where_, bytes.size());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes)
    throw Error(
        ErrorKind::kInvalidData,
        "{}: a header of {} bytes is over the format's limit of {}; this is not a safetensors file",
        where_, header_bytes, kMaxHeaderBytes);
  if (header_bytes > bytes.size() - kLengthBytes)
    throw Error(ErrorKind::kInvalidData,
                "{}: truncated: the header wants {} bytes, the file has {}; download it again",
                where_, header_bytes, bytes.size() - kLengthBytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              header_bytes);
  if (text.empty() || text.front() != '{')
    throw Error(ErrorKind::kInvalidData, "{}: the safetensors header does not begin with '{{'",
                where_);
  const SortedJson header = parse_header(text, where_);
  const std::span<const uint8_t> data = bytes.subspan(kLengthBytes + header_bytes);

  struct Placed {
    uint64_t begin, end;
    StoredTensor tensor;
  };
  std::vector<Placed> placed;
  placed.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) {
      if (!entry.is_object())
        throw Error(ErrorKind::kInvalidData, "{}: {} must be an object of strings", where_,
                    kMetadataKey);
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          throw Error(ErrorKind::kInvalidData, "{}: {}: \"{}\" must be a string", where_,
                      kMetadataKey, key);
        metadata_.emplace(key, value.get<std::string>());
      }
      continue;
    }
    StoredTensor tensor;
    tensor.name = name;
    tensor.file = file_.get();
    const SortedJson& dtype = field_of(entry, "dtype", where_, name);
    const auto type = dtype.is_string()
                          ? storage_type_from_safetensors(dtype.get_ref<const std::string&>())
                          : std::nullopt;
    if (!type)
      throw Error(ErrorKind::kUnsupported,
                  "{}: tensor {}: dtype {} is not one that this build knows", where_, name,
                  dtype.dump(-1, ' ', true, SortedJson::error_handler_t::replace));
    tensor.type = *type;
    const SortedJson& shape = field_of(entry, "shape", where_, name);
    if (!shape.is_array() || shape.size() > kMaxRank)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {}: shape must be an array of at most {} numbers", where_, name,
                  kMaxRank);
    uint64_t size = static_cast<uint64_t>(block_bytes(*type));
    for (const SortedJson& axis : shape) {
      const uint64_t extent = unsigned_at(axis, where_, name, "shape");
      // Bounded before a zero among the extents can hide what no int64 can hold.
      size = checked_mul(size, extent, where_ + ": tensor " + name);
      if (extent > kMaxElements || size > kMaxElements)
        throw Error(ErrorKind::kInvalidData, "{}: tensor {}: an extent of {} is out of range",
                    where_, name, extent);
      tensor.shape.push_back(static_cast<int64_t>(extent));
    }
    const SortedJson& offsets = field_of(entry, "data_offsets", where_, name);
    if (!offsets.is_array() || offsets.size() != 2)
      throw Error(ErrorKind::kInvalidData, "{}: tensor {}: data_offsets must be two numbers",
                  where_, name);
    const uint64_t begin = unsigned_at(offsets[0], where_, name, "data_offsets");
    const uint64_t end = unsigned_at(offsets[1], where_, name, "data_offsets");
    if (begin > end || end - begin != size)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {}: data_offsets [{}, {}] do not hold {} {} = {} bytes", where_, name,
                  begin, end, whit::name(*type), to_string(tensor.shape), size);
    if (end > data.size())
      throw Error(ErrorKind::kInvalidData,
                  "{}: truncated: tensor {} ends at byte {} of the data, the file has {}; download "
                  "it again",
                  where_, name, end, data.size());
    tensor.data = data.subspan(begin, size);
    placed.push_back({begin, end, std::move(tensor)});
  }

  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (Placed& item : placed) {
    if (item.begin != expected)
      throw Error(
          ErrorKind::kInvalidData,
          "{}: tensor {} begins at byte {} of the data where byte {} was due: {}", where_,
          item.tensor.name, item.begin, expected,
          item.begin < expected ? "it overlaps another tensor" : "the format allows no holes");
    expected = item.end;
    if (item.tensor.name.starts_with(kPadPrefix)) continue;
    index_.emplace(item.tensor.name, tensors_.size());
    tensors_.push_back(std::move(item.tensor));
  }
  if (expected != data.size())
    throw Error(ErrorKind::kInvalidData,
                "{}: the tensors take {} bytes, the file has {}; it is damaged, download it again",
                where_, expected, data.size());
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace whit
