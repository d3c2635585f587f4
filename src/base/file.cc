#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/temporary_file.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void throw_errno(const char* action, const fs::path& path) {
  const int code = errno;
  const ErrorKind kind = code == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo;
  const char* hint = code == ENOSPC   ? " (free some space or choose another output place)"
                     : code == EACCES ? " (check the permissions)"
                                      : "";
  throw Error(kind, "cannot {} {}: {}{}", action, path.string(), std::strerror(code), hint);
}

struct FileDescriptor {
  int fd;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

FileDescriptor open_regular(const fs::path& path, uint64_t* size) {
  FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw_errno("open", path);
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) throw_errno("stat", path);
  if (!S_ISREG(info.st_mode))
    throw Error(ErrorKind::kInvalidArgument, "{} is not a regular file", path.string());
  *size = static_cast<uint64_t>(info.st_size);
  return FileDescriptor{std::exchange(file.fd, -1)};
}

fs::path temporary_beside(const fs::path& target) {
  std::random_device random;
  return target.parent_path() /
         fmt::format(".{}.partial-{:08x}", target.filename().string(), random());
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  uint64_t size = 0;
  const FileDescriptor file = open_regular(path, &size);
  size_ = size;
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED) throw_errno("map", path);
  data_ = static_cast<const uint8_t*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::drop_pages(std::span<const uint8_t> range) const {
  if (range.empty()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(range.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(range.data() + range.size()) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_file(const fs::path& path, uint64_t limit_bytes) {
  uint64_t size = 0;
  const FileDescriptor file = open_regular(path, &size);
  if (size > limit_bytes)
    throw Error(ErrorKind::kResource, "{} has {} bytes, more than the limit of {}", path.string(),
                size, limit_bytes);
  std::string content(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.fd, content.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("read", path);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  content.resize(done);
  return content;
}

TemporaryFile::TemporaryFile(const fs::path& target)
    : target_(target), temporary_(temporary_beside(target)) {}

TemporaryFile::~TemporaryFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void TemporaryFile::commit() {
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw_errno("rename to", target_);
  committed_ = true;
}

void write_file(const fs::path& path, std::string_view content) {
  TemporaryFile temporary(path);
  OutputFile file(temporary.path());
  file.write(content.data(), content.size());
  file.close();
  temporary.commit();
}

OutputDirectory::OutputDirectory(const fs::path& target,
                                 const std::function<bool(const fs::path&)>& replaceable)
    : target_(fs::absolute(target).lexically_normal()) {
  if (!target_.has_filename()) target_ = target_.parent_path();
  std::error_code error;
  if (fs::exists(target_, error)) {
    const bool empty = fs::is_directory(target_, error) && fs::is_empty(target_, error);
    if (!empty && !replaceable(target_))
      throw Error(
          ErrorKind::kInvalidArgument,
          "{} exists and is not something this command made; choose another output or remove it",
          target_.string());
  }
  fs::create_directories(target_.parent_path(), error);
  temporary_ = temporary_beside(target_);
  if (::mkdir(temporary_.c_str(), 0777) != 0) throw_errno("create directory", temporary_);
}

OutputDirectory::~OutputDirectory() {
  std::error_code error;
  if (!committed_) fs::remove_all(temporary_, error);
}

void OutputDirectory::commit() {
  std::error_code error;
  fs::path old;
  if (fs::exists(target_, error)) {
    old = temporary_beside(target_);
    if (::rename(target_.c_str(), old.c_str()) != 0) throw_errno("move aside", target_);
  }
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const int code = errno;
    if (!old.empty()) ::rename(old.c_str(), target_.c_str());
    errno = code;
    throw_errno("rename to", target_);
  }
  committed_ = true;
  if (!old.empty()) fs::remove_all(old, error);
}

OutputFile::OutputFile(const fs::path& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) throw_errno("create", path);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(fd_, from, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_errno("write", path_);
    from += put;
    bytes -= static_cast<size_t>(put);
    offset_ += static_cast<uint64_t>(put);
  }
}

void OutputFile::pad_to(uint64_t alignment) {
  static constexpr char kZeros[64] = {};
  while (offset_ % alignment != 0)
    write(kZeros, std::min<uint64_t>(sizeof(kZeros), alignment - offset_ % alignment));
}

void OutputFile::close() {
  if (::fsync(fd_) != 0 && errno != EINVAL) throw_errno("sync", path_);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) throw_errno("close", path_);
}

}  // namespace whit
