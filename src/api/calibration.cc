#include "api/calibration.h"

#include <algorithm>

#include "api/calibration_source.h"
#include "base/embedded.h"
#include "runtime/batch_generator.h"
#include "runtime/chat.h"

namespace whit {
namespace {

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

// Text that the model writes: `samples` sequences.
CalibrationData written_by_model(const Model& model, const CalibrationRequest& request,
                                 int64_t samples, cpu::Isa isa, ThreadPool& pool) {
  const BatchGenerationOptions options{.sequences = samples,
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
  data.samples = samples;
  data.length = request.length;
  data.source = "self";
  return data;
}

// Samples of each part: proportional to its weight by largest remainders, at least one.
std::vector<int64_t> shares_of(std::span<const CalibrationSource> parts, int64_t samples) {
  const auto count = static_cast<int64_t>(parts.size());
  if (samples < count)
    throw Error(ErrorKind::kInvalidArgument,
                "{} calibration samples cannot be shared by {} sources: raise --calib-samples",
                samples, count);
  double total = 0;
  for (const CalibrationSource& part : parts) total += part.weight;
  std::vector<int64_t> shares;
  std::vector<std::pair<double, size_t>> remainders;
  int64_t given = 0;
  for (const CalibrationSource& part : parts) {
    const double exact = static_cast<double>(samples) * part.weight / total;
    shares.push_back(std::max<int64_t>(1, static_cast<int64_t>(exact)));
    given += shares.back();
    remainders.emplace_back(exact - static_cast<double>(shares.back()), shares.size() - 1);
  }
  std::stable_sort(remainders.begin(), remainders.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; given < samples; ++i, ++given)
    ++shares[remainders[i % remainders.size()].second];
  while (given > samples) {
    --*std::max_element(shares.begin(), shares.end());
    --given;
  }
  return shares;
}

}  // namespace

CalibrationData calibration_data(const Model& model, const CalibrationRequest& request,
                                 cpu::Isa isa, ThreadPool& pool) {
  check_sizes(request, model.config());
  const std::vector<CalibrationSource> sources = parse_calibration_sources(request.source);
  const std::vector<int64_t> shares = shares_of(sources, request.samples);
  std::vector<CalibrationData> parts;
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto& [source, weight] = sources[i];
    int64_t tokens = shares[i] * request.length;
    if (source == "self") {
      parts.push_back(written_by_model(model, request, shares[i], isa, pool));
    } else {
      const std::vector<int32_t> ids = read_calibration_tokens(model, source);
      tokens = static_cast<int64_t>(ids.size());
      parts.push_back(calibration_from_tokens(
          ids, std::filesystem::path(source).filename().string(), shares[i], request.length));
    }
    CalibrationData& part = parts.back();
    part.seed = request.seed;
    if (sources.size() == 1) continue;
    part.parts.push_back({{"source", part.source},
                          {"weight", weight},
                          {"samples", part.samples},
                          {"tokens", tokens}});
    if (part.samples < shares[i])
      part.warnings.push_back(fmt::format(
          "calibration source {} has {} tokens: only {} of the {} samples that its weight asks for",
          source, tokens, part.samples, shares[i]));
  }
  return parts.size() == 1 ? std::move(parts.front()) : mix_calibration(parts);
}

std::string calibration_key(const CalibrationRequest& request) {
  const std::vector<CalibrationSource> sources = parse_calibration_sources(request.source);
  std::string key;
  for (const auto& [source, weight] : sources) {
    if (!key.empty()) key += " + ";
    key += source == "self" ? source : calibration_file_digest(source);
    if (std::filesystem::path(source).extension() == ".jsonl") key += " jsonl";
    if (sources.size() > 1) key += fmt::format(":{}", weight);
  }
  return fmt::format("{} {}x{} seed {}", key, request.samples, request.length, request.seed);
}

}  // namespace whit
