// Tiny models for tests: the random ones under tests/golden, and calibration data for them.
#pragma once

#include <filesystem>
#include <random>
#include <string>

#include "base/file.h"
#include "calibrate/calibrator.h"
#include "engine/model.h"

namespace whit::testing {

inline std::filesystem::path golden_model(const std::string& name) {
  return std::filesystem::path(WHIT_SOURCE_DIR) / "tests/golden" / name;
}

inline CalibrationData random_tokens(const Model& model, int64_t samples, int64_t length,
                                     uint32_t seed) {
  std::mt19937 random(seed);
  CalibrationData data;
  data.samples = samples;
  data.length = length;
  data.source = "random tokens";
  for (int64_t i = 0; i < samples * length; ++i)
    data.ids.push_back(
        static_cast<int32_t>(random() % static_cast<uint32_t>(model.config().vocab_size)));
  return data;
}

// A directory of the test's own, removed with it.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "whit-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// A copy of a golden model with a tokenizer of two letters, which engines must have.
inline std::filesystem::path with_tokenizer(const ScratchDirectory& scratch,
                                            const std::string& name) {
  const std::filesystem::path copy = scratch.path() / (name + "-with-tokenizer");
  if (std::filesystem::exists(copy)) return copy;
  std::filesystem::copy(golden_model(name), copy);
  write_file(
      copy / "tokenizer.json",
      R"({"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel",)"
      R"("add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,)"
      R"("decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},)"
      R"("model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}})");
  return copy;
}

}  // namespace whit::testing
