// What a kind of checkpoint (Hugging Face directory, GGUF file) hands to class Checkpoint: one
// function per kind fills it.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/gguf.h"
#include "checkpoint/stored_tensor.h"

namespace whit {

struct CheckpointContents {
  std::string description;            // one line: path, kind, number of tensors
  std::filesystem::path config_path;  // where config() came from, for messages
  bool is_gguf = false;
  std::vector<StoredTensor> tensors;  // Hugging Face names
  Json config;
  Json generation_config = Json::object();
  // Called at most once each: a vocabulary takes far longer to read than everything else.
  std::function<std::string()> tokenizer_json;
  std::function<Json()> tokenizer_config;
  std::function<std::string()> tokenizer_bytes;     // the tokenizer as stored, for the digest
  std::vector<std::shared_ptr<const void>> owners;  // what the tensors' bytes live in
};

CheckpointContents read_hf_directory(const std::filesystem::path& directory);
CheckpointContents read_gguf(std::shared_ptr<const GgufFile> file);

}  // namespace whit
