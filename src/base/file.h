// Files: read-only mappings, whole-file reads, and output that is either whole or not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace whit {

// A read-only, private mapping of a whole regular file. Movable; the mapping lives as long as the
// object.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);  // throws kNotFound, kIo
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Tells the kernel that these pages are not needed soon; they stay readable.
  void drop_pages(std::span<const uint8_t> range) const;

 private:
  std::filesystem::path path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Reads a whole text file; throws kNotFound, kIo, or kResource where it is larger than
// `limit_bytes`.
std::string read_file(const std::filesystem::path& path, uint64_t limit_bytes = uint64_t{1} << 30);

// Writes `content` to a temporary name beside `path`, syncs, renames. Throws kIo (disk full, …)
// leaving nothing.
void write_file(const std::filesystem::path& path, std::string_view content);

// A directory under construction: created under a temporary name beside `target`, renamed to it by
// commit(), removed by the destructor otherwise. An existing target is replaced only at commit, and
// only if `replaceable` approves it.
class OutputDirectory {
 public:
  // `replaceable(target)` is asked when target exists and is not an empty directory; false throws
  // kInvalidArgument.
  OutputDirectory(const std::filesystem::path& target,
                  const std::function<bool(const std::filesystem::path&)>& replaceable);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }  // write here
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  bool committed_ = false;
};

// An output file written front to back; throws kIo with the path and the system's reason on any
// failure.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, size_t bytes);
  void pad_to(uint64_t alignment);  // zero bytes up to the next multiple
  uint64_t offset() const { return offset_; }
  void close();  // syncs; must be called for the content to count

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t offset_ = 0;
};

}  // namespace whit
