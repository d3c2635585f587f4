// Tests only: a golden model's directory with a byte-level tokenizer beside it, in a temporary
// folder.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/json.h"

namespace whit {

class TextModel {
 public:
  static constexpr int32_t kEndOfSequence = 2, kTurn = 3, kFirstByte = 4;

  // tests/golden/<name>, whose vocabulary must have at least 260 entries.
  explicit TextModel(const std::string& name = "llama_rope_llama3") {
    std::string pattern = (std::filesystem::temp_directory_path() / "whit-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      throw Error(ErrorKind::kIo, "cannot create {}", pattern);
    folder_ = pattern;
    std::filesystem::copy(std::filesystem::path(WHIT_SOURCE_DIR) / "tests/golden" / name, path());
    write_file(path() / "tokenizer.json", tokenizer().dump());
    write_file(
        path() / "tokenizer_config.json",
        Json{{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"chat_template", kTemplate}}.dump());
  }
  ~TextModel() {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  TextModel(const TextModel&) = delete;
  TextModel& operator=(const TextModel&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path path() const { return folder_ / "model"; }

 private:
  static constexpr const char* kTemplate =
      "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
      "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}";

  static std::string utf8(int code_point) {
    if (code_point < 0x80) return {static_cast<char>(code_point)};
    return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
  }

  // Byte-level BPE without merges: four special tokens, then one token for each byte, spelled with
  // GPT-2's printable stand-ins.
  static Json tokenizer() {
    Json vocabulary = Json::object(), added = Json::array();
    for (const char* token : {"<unk>", "<s>", "</s>", "<|turn|>"}) {
      added.push_back({{"id", vocabulary.size()},
                       {"content", token},
                       {"special", true},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false}});
      vocabulary[token] = vocabulary.size();
    }
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
      vocabulary[utf8(printable ? byte : next++)] = kFirstByte + byte;
    }
    const Json byte_level = {{"type", "ByteLevel"},
                             {"add_prefix_space", false},
                             {"trim_offsets", true},
                             {"use_regex", true}};
    return {{"version", "1.0"},
            {"added_tokens", added},
            {"normalizer", nullptr},
            {"pre_tokenizer", byte_level},
            {"post_processor", nullptr},
            {"decoder", byte_level},
            {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  }

  std::filesystem::path folder_;
};

}  // namespace whit
