// SafetensorsWriter (checkpoint/safetensors.h): the header is laid out first, the tensors follow as
// they come.
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace whit {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kLengthBytes = 8;

uint64_t size_in_bytes(const SafetensorsWriter::Entry& entry) {
  uint64_t size = static_cast<uint64_t>(block_bytes(entry.type));
  for (const int64_t extent : entry.shape)
    size = checked_mul(size, static_cast<uint64_t>(extent), entry.name);
  return size;
}

std::string quoted(const std::string& text) { return Json(text).dump(); }

// Written as text: a Json object would search its keys linearly for each of the tensors.
void append_entry(std::string& header, const std::string& name, std::string_view dtype,
                  const Shape& shape, uint64_t begin, uint64_t end) {
  header += header.size() > 1 ? "," : "";
  header += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                        quoted(name), dtype, Json(shape).dump(), begin, end);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                                     const std::map<std::string, std::string>& metadata,
                                     Alignment alignment)
    : file_(path), where_(path.string()), entries_(std::move(entries)) {
  std::set<std::string_view> names;
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + Json(metadata).dump();
  uint64_t offset = 0;
  for (const Entry& entry : entries_) {
    if (storage_type_from_safetensors(whit::name(entry.type)) != entry.type)
      throw Error(ErrorKind::kInvalidArgument, "{}: tensor {}: safetensors files cannot hold {}",
                  where_, entry.name, whit::name(entry.type));
    if (!names.insert(entry.name).second || entry.name == "__metadata__")
      throw Error(ErrorKind::kInvalidArgument, "{}: tensor name {} is taken", where_, entry.name);
    const uint64_t end = checked_add(offset, size_in_bytes(entry), entry.name);
    append_entry(header, entry.name, whit::name(entry.type), entry.shape, offset, end);
    offset = end;
    padding_.push_back(0);
    if (alignment == Alignment::kEach64 && offset % kAlignment != 0) {
      const uint64_t padding = kAlignment - offset % kAlignment;
      append_entry(header, fmt::format("__pad.{}", padding_.size() - 1), "U8",
                   {static_cast<int64_t>(padding)}, offset, offset + padding);
      padding_.back() = padding;
      offset += padding;
    }
  }
  header += "}";
  while ((kLengthBytes + header.size()) % kAlignment != 0) header += ' ';
  const uint64_t length = header.size();
  file_.write(&length, sizeof(length));
  file_.write(header.data(), header.size());
  if (!entries_.empty()) remaining_ = size_in_bytes(entries_[0]);
  advance();
}

void SafetensorsWriter::advance() {
  static constexpr uint8_t kZeros[kAlignment] = {};
  while (current_ < entries_.size() && remaining_ == 0) {
    file_.write(kZeros, padding_[current_]);
    if (++current_ < entries_.size()) remaining_ = size_in_bytes(entries_[current_]);
  }
}

void SafetensorsWriter::write(std::string_view name, std::span<const uint8_t> piece) {
  if (piece.empty()) return;
  if (current_ == entries_.size() || entries_[current_].name != name || piece.size() > remaining_)
    throw Error(ErrorKind::kInvalidArgument,
                "{}: {} bytes of {} came where {} bytes of {} were due", where_, piece.size(), name,
                remaining_,
                current_ == entries_.size() ? std::string("nothing") : entries_[current_].name);
  file_.write(piece.data(), piece.size());
  remaining_ -= piece.size();
  advance();
}

void SafetensorsWriter::finish() {
  if (current_ != entries_.size())
    throw Error(ErrorKind::kInvalidArgument, "{}: {} bytes of {} were not written", where_,
                remaining_, entries_[current_].name);
  file_.close();
}

}  // namespace whit
