#include "api/calibration_source.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/file.h"
#include "runtime/chat.h"

namespace whit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr size_t kMaxTokens = kMaxFileBytes;  // what a text of that size can hold
constexpr double kMaxWeight = 1e6;
// Templates that print the date must give the same tokens every day: 2025-01-01.
constexpr std::time_t kTemplateTime = 1735689600;

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

CalibrationSource parse_part(const std::string& text) {
  CalibrationSource part{.source = text};
  const size_t colon = text.rfind(':');
  if (!exists(text) && colon != std::string::npos) {
    const std::string number = text.substr(colon + 1);
    const char* end = number.data() + number.size();
    double weight = 0;
    const auto [stop, error] = std::from_chars(number.data(), end, weight);
    if (error != std::errc() || stop != end || !(weight > 0) || weight > kMaxWeight)
      throw Error(
          ErrorKind::kInvalidArgument,
          "--calib {}: \"{}\" is neither a file nor SOURCE:WEIGHT with a weight above 0, like "
          "prose.txt:0.7",
          text, text);
    part = {text.substr(0, colon), weight};
  }
  if (part.source.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "--calib \"{}\": a source is missing; give a file or \"self\"", text);
  return part;
}

std::string read_source(const std::string& path) {
  if (!exists(path))
    throw Error(ErrorKind::kNotFound,
                "calibration text {} does not exist; give a text file, or \"self\" to calibrate on "
                "text that the model writes",
                path);
  std::string text = read_file(path, kMaxFileBytes);
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw Error(
        ErrorKind::kInvalidArgument,
        "calibration text {} is empty; give a text file with some thousand words, or \"self\"",
        path);
  return text;
}

// The lines of one JSONL file, turned into tokens.
class JsonlReader {
 public:
  JsonlReader(const Model& model, const std::string& path) : model_(model), path_(path) {}

  std::vector<int32_t> read(std::string_view content) {
    int64_t number = 0;
    while (!content.empty()) {
      const size_t end = std::min(content.find('\n'), content.size());
      const std::string_view line = content.substr(0, end);
      content.remove_prefix(std::min(end + 1, content.size()));
      ++number;
      // A template can make a thousand tokens of a line of twenty bytes.
      if (ids_.size() > kMaxTokens)
        throw Error(ErrorKind::kResource,
                    "{}: over {} tokens in the lines before; give a smaller file", place(number),
                    kMaxTokens);
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      add(parse_json(line, place(number)), place(number));
    }
    encode_documents();
    return std::move(ids_);
  }

 private:
  std::string place(int64_t number) const { return fmt::format("{}:{}", path_, number); }

  void add(const Json& line, const std::string& where) {
    if (line.is_array()) return add_ids(line, where);
    for (const char* key : {"ids", "token_ids", "input_ids"})
      if (line.is_object() && line.contains(key)) return add_ids(line[key], where);
    if (line.is_object() && line.contains("messages")) return add_conversation(line, where);
    if (line.is_object() && line.contains("text")) {
      documents_ += json_get<std::string>(line, "text", where) + "\n\n";
      return;
    }
    throw Error(ErrorKind::kInvalidData,
                "{}: a line must be {{\"text\": …}}, {{\"messages\": […]}} or {{\"ids\": […]}}",
                where);
  }

  void add_ids(const Json& ids, const std::string& where) {
    encode_documents();
    const int64_t vocabulary = model_.config().vocab_size;
    if (!ids.is_array())
      throw Error(ErrorKind::kInvalidData, "{}: the token ids are no list", where);
    for (const Json& id : ids) {
      if (!id.is_number_integer() || id < 0 || id >= vocabulary)
        throw Error(ErrorKind::kInvalidData, "{}: {} is no token of this model: ids are 0 … {}",
                    where, id.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40),
                    vocabulary - 1);
      ids_.push_back(id.get<int32_t>());
    }
  }

  void add_conversation(const Json& line, const std::string& where) {
    encode_documents();
    ChatInput input;
    input.messages = line["messages"];
    if (line.contains("tools")) input.tools = line["tools"];
    input.now = kTemplateTime;
    if (!input.messages.is_array() || input.messages.empty())
      throw Error(ErrorKind::kInvalidData, "{}: \"messages\" is no list of messages", where);
    for (const Json& message : input.messages) {
      json_get<std::string>(message, "role", where);
      if (!message.contains("content"))
        throw Error(ErrorKind::kInvalidData, "{}: a message has no \"content\"", where);
    }
    try {
      const std::vector<int32_t> ids = chat_prompt_ids(model_, std::move(input));
      ids_.insert(ids_.end(), ids.begin(), ids.end());
    } catch (const Error& error) {
      throw Error(error.kind(), "{}: {}", where, error.what());
    }
  }

  // Documents that follow each other are encoded as one text.
  void encode_documents() {
    if (documents_.empty()) return;
    const std::vector<int32_t> ids =
        model_.tokenizer().encode(documents_, {.add_special_tokens = false});
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    documents_.clear();
  }

  const Model& model_;
  const std::string& path_;
  std::string documents_;
  std::vector<int32_t> ids_;
};

}  // namespace

std::vector<CalibrationSource> parse_calibration_sources(const std::string& text) {
  std::vector<CalibrationSource> parts;
  const auto add = [&parts](const std::string& part) { parts.push_back(parse_part(part)); };
  const auto split = [](const std::string& whole, char separator, const auto& each) {
    for (size_t begin = 0; begin <= whole.size();) {
      const size_t end = std::min(whole.find(separator, begin), whole.size());
      each(whole.substr(begin, end - begin));
      begin = end + 1;
    }
  };
  split(text, '\n', [&](const std::string& argument) {
    if (exists(argument))
      add(argument);
    else
      split(argument, ',', add);
  });
  for (size_t i = 0; i < parts.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (parts[i].source == parts[j].source)
        throw Error(ErrorKind::kInvalidArgument, "--calib {} is given twice", parts[i].source);
  return parts;
}

std::vector<int32_t> read_calibration_tokens(const Model& model, const std::string& path) {
  const std::string text = read_source(path);
  if (fs::path(path).extension() == ".jsonl") return JsonlReader(model, path).read(text);
  return model.tokenizer().encode(text, {.add_special_tokens = false});
}

std::string calibration_file_digest(const std::string& path) {
  const std::string text = read_source(path);
  return digest({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace whit
