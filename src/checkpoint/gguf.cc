#include "checkpoint/gguf.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"

namespace whit {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kMaxNameBytes = 4096;
// The least that a key-value pair or a tensor description takes: bounds counts before anything is
// reserved.
constexpr uint64_t kMinPairBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

// Bytes of a fixed-size type; 0 for strings and arrays.
uint64_t fixed_size(GgufType type) {
  constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[static_cast<uint32_t>(type)];
}

template <typename T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

bool is_integer(GgufType type) {
  return type != GgufType::kF32 && type != GgufType::kF64 && type != GgufType::kBool &&
         fixed_size(type) > 0;
}

// The double that prints as `value` does: what a JSON file would have said.
double shortest_decimal(float value) {
  double result = static_cast<double>(value);
  const std::string text = fmt::format("{}", value);
  if (std::isfinite(value)) std::from_chars(text.data(), text.data() + text.size(), result);
  return result;
}

// nullopt for a u64 above INT64_MAX.
std::optional<int64_t> load_integer(GgufType type, const uint8_t* from) {
  switch (type) {
    case GgufType::kU8:
      return load<uint8_t>(from);
    case GgufType::kI8:
      return load<int8_t>(from);
    case GgufType::kU16:
      return load<uint16_t>(from);
    case GgufType::kI16:
      return load<int16_t>(from);
    case GgufType::kU32:
      return load<uint32_t>(from);
    case GgufType::kI32:
      return load<int32_t>(from);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(from);
      if (value > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return load<int64_t>(from);
  }
}

}  // namespace

// A cursor that never passes the end.
class GgufFile::Reader {
 public:
  Reader(std::span<const uint8_t> bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return bytes_.size() - offset_; }

  std::span<const uint8_t> take(uint64_t count, std::string_view what) {
    if (count > left())
      throw Error(ErrorKind::kInvalidData,
                  "{}: truncated or damaged: {} at byte {} wants {} bytes, {} are left; download "
                  "the file again",
                  where_, what, offset_, count, left());
    const auto result = bytes_.subspan(offset_, count);
    offset_ += count;
    return result;
  }
  uint32_t u32(std::string_view what) { return load<uint32_t>(take(4, what).data()); }
  uint64_t u64(std::string_view what) { return load<uint64_t>(take(8, what).data()); }
  std::string_view string(std::string_view what) {
    const uint64_t length = u64(what);
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  GgufType type(std::string_view key) {
    const uint32_t id = u32(key);
    if (id > static_cast<uint32_t>(GgufType::kF64))
      throw Error(ErrorKind::kInvalidData, "{}: key {}: value type {} does not exist", where_, key,
                  id);
    return static_cast<GgufType>(id);
  }

 private:
  std::span<const uint8_t> bytes_;
  const std::string& where_;
  uint64_t offset_ = 0;
};

GgufFile::GgufFile(const std::filesystem::path& path)
    : file_(std::make_unique<MappedFile>(path)), where_(path.string()) {
  parse(file_->bytes());
}

GgufFile::GgufFile(std::span<const uint8_t> bytes, std::string where) : where_(std::move(where)) {
  parse(bytes);
}

void GgufFile::parse(std::span<const uint8_t> bytes) {
  Reader reader(bytes, where_);
  if (bytes.size() < 4 || reader.u32("the magic number") != kMagic)
    throw Error(ErrorKind::kInvalidData, "{}: not a GGUF file (it does not begin with \"GGUF\")",
                where_);
  version_ = reader.u32("the version");
  if (version_ != 0 && (version_ & 0xffff) == 0)
    throw Error(ErrorKind::kUnsupported, "{}: big-endian GGUF files are not supported", where_);
  if (version_ != 2 && version_ != 3)
    throw Error(ErrorKind::kUnsupported,
                "{}: GGUF version {} is not supported (2 and 3 are); convert the model again with "
                "a current tool",
                where_, version_);
  const uint64_t tensor_count = reader.u64("the tensor count");
  const uint64_t value_count = reader.u64("the key count");
  parse_values(reader, value_count);
  parse_tensors(reader, tensor_count, bytes);
}

void GgufFile::parse_values(Reader& reader, uint64_t count) {
  if (count > reader.left() / kMinPairBytes)
    throw Error(ErrorKind::kInvalidData,
                "{}: {} keys cannot fit into the file; it is truncated or damaged", where_, count);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string_view key = reader.string("a key");
    if (key.empty() || key.size() > kMaxNameBytes)
      throw Error(ErrorKind::kInvalidData, "{}: key {} has a length of {} bytes", where_, i,
                  key.size());
    Value value{reader.type(key), GgufType::kU8, 0, {}};
    if (value.type == GgufType::kString) {
      const std::string_view text = reader.string(key);
      value.bytes = {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
    } else if (value.type == GgufType::kArray) {
      value.element = reader.type(key);
      value.count = reader.u64(key);
      if (value.element == GgufType::kArray)
        throw Error(ErrorKind::kUnsupported, "{}: key {}: arrays of arrays are not supported",
                    where_, key);
      if (value.element == GgufType::kString) {
        const uint64_t begin = reader.offset();
        Reader strings = reader;
        for (uint64_t j = 0; j < value.count; ++j) strings.string(key);
        value.bytes = reader.take(strings.offset() - begin, key);
      } else {
        value.bytes = reader.take(checked_mul(value.count, fixed_size(value.element),
                                              fmt::format("{}: key {}", where_, key)),
                                  key);
      }
    } else {
      value.bytes = reader.take(fixed_size(value.type), key);
    }
    if (!values_.emplace(key, value).second)
      throw Error(ErrorKind::kInvalidData, "{}: key {} appears twice", where_, key);
  }
}

void GgufFile::parse_tensors(Reader& reader, uint64_t count, std::span<const uint8_t> bytes) {
  if (count > reader.left() / kMinTensorBytes)
    throw Error(ErrorKind::kInvalidData,
                "{}: {} tensors cannot fit into the file; it is truncated or damaged", where_,
                count);
  const int64_t alignment = integer("general.alignment").value_or(kDefaultAlignment);
  if (alignment < 8 || alignment > static_cast<int64_t>(kMaxAlignment) ||
      (alignment & (alignment - 1)) != 0)
    throw Error(ErrorKind::kInvalidData,
                "{}: general.alignment = {} is not a power of two from 8 to {}", where_, alignment,
                kMaxAlignment);

  struct Placed {
    uint64_t offset, size;
  };
  std::vector<Placed> placed;
  tensors_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    StoredTensor tensor;
    tensor.file = file_.get();
    tensor.name = std::string(reader.string("a tensor's name"));
    if (tensor.name.empty() || tensor.name.size() > kMaxNameBytes)
      throw Error(ErrorKind::kInvalidData, "{}: tensor {} has a name of {} bytes", where_, i,
                  tensor.name.size());
    const uint32_t rank = reader.u32(tensor.name);
    if (rank > kMaxRank)
      throw Error(ErrorKind::kInvalidData, "{}: tensor {} has {} dimensions, more than {}", where_,
                  tensor.name, rank, kMaxRank);
    uint64_t elements = 1;
    for (uint32_t axis = 0; axis < rank; ++axis) {
      const uint64_t extent = reader.u64(tensor.name);
      elements = checked_mul(elements, extent, where_ + ": tensor " + tensor.name);
      if (extent == 0 || elements > static_cast<uint64_t>(INT64_MAX) / 8)
        throw Error(ErrorKind::kInvalidData, "{}: tensor {}: dimension {} = {} is out of range",
                    where_, tensor.name, axis, extent);
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));
    }
    const uint32_t type_id = reader.u32(tensor.name);
    const auto type = storage_type_from_ggml(type_id);
    if (!type)
      throw Error(ErrorKind::kUnsupported,
                  "{}: tensor {} has the ggml type {}, which is not readable here; use a file of "
                  "another quantization "
                  "(F16, Q8_0, Q4_0 to Q6_K, …)",
                  where_, tensor.name, ggml_type_name(type_id));
    tensor.type = *type;
    if (tensor.row_size() % block_elements(*type) != 0)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {}: rows of {} are not whole blocks of {} ({})", where_, tensor.name,
                  tensor.row_size(), name(*type), block_elements(*type));
    const uint64_t offset = reader.u64(tensor.name);
    if (offset % static_cast<uint64_t>(alignment) != 0)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {}: offset {} is not a multiple of the alignment {}", where_,
                  tensor.name, offset, alignment);
    const uint64_t size =
        checked_mul(elements / static_cast<uint64_t>(block_elements(*type)),
                    static_cast<uint64_t>(block_bytes(*type)), where_ + ": tensor " + tensor.name);
    if (!index_.emplace(tensor.name, tensors_.size()).second)
      throw Error(ErrorKind::kInvalidData, "{}: tensor {} appears twice", where_, tensor.name);
    placed.push_back({offset, size});
    tensors_.push_back(std::move(tensor));
  }

  const uint64_t data_begin = std::min<uint64_t>(
      static_cast<uint64_t>(round_up(static_cast<int64_t>(reader.offset()), alignment)),
      bytes.size());
  header_ = bytes.first(data_begin);
  const std::span<const uint8_t> data = bytes.subspan(data_begin);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const auto& [offset, size] = placed[i];
    if (offset > data.size() || size > data.size() - offset)
      throw Error(
          ErrorKind::kInvalidData,
          "{}: truncated: tensor {} wants {} bytes at byte {} of the data, the file has {}; "
          "download it again",
          where_, tensors_[i].name, size, offset, data.size());
    tensors_[i].data = data.subspan(offset, size);
  }
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return placed[a].offset < placed[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Placed& before = placed[order[i - 1]];
    if (before.offset + before.size > placed[order[i]].offset)
      throw Error(ErrorKind::kInvalidData, "{}: tensors {} and {} overlap", where_,
                  tensors_[order[i - 1]].name, tensors_[order[i]].name);
  }
}

const StoredTensor* GgufFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const GgufFile::Value* GgufFile::value(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

const GgufFile::Value* GgufFile::array(std::string_view key) const {
  const Value* found = value(key);
  if (found != nullptr && found->type != GgufType::kArray) throw_type(key, "an array");
  return found;
}

void GgufFile::throw_type(std::string_view key, std::string_view wanted) const {
  throw Error(ErrorKind::kInvalidData, "{}: key {} must be {}", where_, key, wanted);
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (!is_integer(found->type)) throw_type(key, "an integer");
  const auto result = load_integer(found->type, found->bytes.data());
  if (!result) throw_type(key, "an integer below 2^63");
  return result;
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (found->type == GgufType::kF64) return load<double>(found->bytes.data());
  if (found->type == GgufType::kF32) return shortest_decimal(load<float>(found->bytes.data()));
  if (is_integer(found->type)) return static_cast<double>(*integer(key));
  throw_type(key, "a number");
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (found->type != GgufType::kBool) throw_type(key, "true or false");
  return found->bytes[0] != 0;
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (found->type != GgufType::kString) throw_type(key, "a string");
  return std::string_view(reinterpret_cast<const char*>(found->bytes.data()), found->bytes.size());
}

std::optional<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  const Value* found = array(key);
  if (found == nullptr) return std::nullopt;
  if (found->element != GgufType::kString) throw_type(key, "an array of strings");
  Reader reader(found->bytes, where_);
  std::vector<std::string_view> result;
  result.reserve(found->count);
  for (uint64_t i = 0; i < found->count; ++i) result.push_back(reader.string(key));
  return result;
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const Value* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (found->type != GgufType::kArray) return std::vector<int64_t>{*integer(key)};
  if (!is_integer(found->element)) throw_type(key, "an array of integers");
  std::vector<int64_t> result;
  result.reserve(found->count);
  for (uint64_t i = 0; i < found->count; ++i) {
    const auto item =
        load_integer(found->element, found->bytes.data() + i * fixed_size(found->element));
    if (!item) throw_type(key, "an array of integers below 2^63");
    result.push_back(*item);
  }
  return result;
}

std::optional<std::vector<float>> GgufFile::floats(std::string_view key) const {
  const Value* found = array(key);
  if (found == nullptr) return std::nullopt;
  if (found->element != GgufType::kF32) throw_type(key, "an array of 32-bit floats");
  std::vector<float> result(found->count);
  if (found->count > 0) std::memcpy(result.data(), found->bytes.data(), found->bytes.size());
  return result;
}

uint64_t GgufFile::array_size(std::string_view key) const {
  const Value* found = array(key);
  return found == nullptr ? 0 : found->count;
}

}  // namespace whit
