// A file under construction: write to path(); commit() gives it its name, the destructor removes it
// otherwise.
#pragma once

#include <filesystem>

namespace whit {

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  void commit();  // throws kIo

 private:
  std::filesystem::path target_, temporary_;
  bool committed_ = false;
};

}  // namespace whit
