#include "api/calibration.h"

#include <algorithm>

#include "base/embedded.h"
#include "base/file.h"
#include "runtime/batch_generator.h"
#include "runtime/chat.h"

namespace whit {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{256} << 20;
constexpr int64_t kMaxTokens =
    int64_t{1} << 24;  // of all samples: hidden states of 1M x 4096 are 16 GB already

void check_sizes(const CalibrationRequest& request, const ModelConfig& config) {
  if (request.samples < 1 || request.length < 2 || request.samples > kMaxTokens / request.length)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration with {} samples of {} tokens is out of range: at least 1 sample of 2 "
                "tokens, at most {} "
                "tokens in all (--calib-samples, --calib-length)",
                request.samples, request.length, kMaxTokens);
  if (request.length > config.max_position_embeddings)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration samples of {} tokens are longer than the model's context of {} "
                "(--calib-length)",
                request.length, config.max_position_embeddings);
}

std::string joined_jsonl(std::string_view content, const std::string& where) {
  std::string text;
  int64_t number = 0;
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", where, number);
    text += json_get<std::string>(parse_json(line, place), "text", place) + "\n\n";
  }
  return text;
}

std::string read_text(const std::string& source) {
  const std::filesystem::path path(source);
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw Error(ErrorKind::kNotFound,
                "calibration text {} does not exist; give a text file, or \"self\" to calibrate on "
                "text that the model "
                "writes",
                source);
  std::string text = read_file(path, kMaxTextBytes);
  if (path.extension() == ".jsonl") text = joined_jsonl(text, source);
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw Error(
        ErrorKind::kInvalidArgument,
        "calibration text {} is empty; give a text file with some thousand words, or \"self\"",
        source);
  return text;
}

std::vector<std::vector<int32_t>> prompts(const Model& model) {
  const bool has_template = has_chat_template(model);
  std::vector<std::vector<int32_t>> result;
  std::string_view rest = embedded::calib_prompts();
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.empty()) continue;
    const Json entry = parse_json(line, "the built-in calibration prompts");
    const auto prompt = json_get<std::string>(entry, "prompt", "the built-in calibration prompts");
    if (has_template &&
        json_get_or<bool>(entry, "chat", false, "the built-in calibration prompts")) {
      const ConversationMessage message{"user", prompt};
      result.push_back(chat_prompt_ids(model, {&message, 1}));
    } else {
      result.push_back(model.tokenizer().encode(prompt, {.add_special_tokens = true}));
    }
  }
  std::erase_if(result, [](const auto& ids) { return ids.empty(); });
  if (result.empty())
    throw Error(ErrorKind::kInvalidData,
                "{}: its tokenizer gives no tokens for the built-in prompts; give --calib FILE",
                model.description());
  return result;
}

}  // namespace

CalibrationData calibration_data(const Model& model, const CalibrationRequest& request,
                                 cpu::Isa isa, ThreadPool& pool) {
  check_sizes(request, model.config());
  if (request.source != "self") {
    CalibrationData data = calibration_from_text(
        model.tokenizer(), read_text(request.source),
        std::filesystem::path(request.source).filename().string(), request.samples, request.length);
    data.seed = request.seed;
    return data;
  }
  const BatchGenerationOptions options{.sequences = request.samples,
                                       .length = request.length,
                                       .seed = request.seed,
                                       .stop_ids = model.stop_ids(),
                                       .kv_dtype = DType::kF16};
  // Short prompts come together in the first step; afterwards a step has one row for each sequence.
  Executor executor(model.config(), model.graph(), model.weights(),
                    {.max_tokens = kBatchStepTokens,
                     .max_context = request.length,
                     .max_logit_rows = kBatchSequences,
                     .isa = isa},
                    pool);
  CalibrationData data;
  data.ids = generate_batch(executor, prompts(model), options);
  data.samples = request.samples;
  data.length = request.length;
  data.source = "self";
  data.seed = request.seed;
  return data;
}

std::string calibration_key(const CalibrationRequest& request) {
  std::string source = "self";
  if (request.source != "self") {
    const std::string text = read_text(request.source);
    source = digest({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  return fmt::format("{} {}x{} seed {}", source, request.samples, request.length, request.seed);
}

}  // namespace whit
