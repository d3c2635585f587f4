#include "api/quality_gate.h"

#include <charconv>
#include <cmath>
#include <filesystem>

#include "base/embedded.h"
#include "base/file.h"
#include "evaluate/streamed.h"

namespace whit {

Json measure_quality(const Model& engine, const Model& original, const QualityRequest& request,
                     cpu::Isa isa, ThreadPool& pool) {
  const std::string text = request.text.empty() ? std::string(embedded::eval_text())
                                                : read_file(request.text, uint64_t{1} << 30);
  const std::vector<int32_t> ids = original.tokenizer().encode(text);
  EvalOptions options;
  options.ctx_size = std::min(request.ctx_size, original.config().max_position_embeddings);
  options.max_windows = request.max_windows;
  const EvalResult result = evaluate_streamed(engine, original, ids, options, isa, pool);
  Json quality = {
      {"text",
       request.text.empty() ? "built-in" : std::filesystem::path(request.text).filename().string()},
      {"text_digest", digest({reinterpret_cast<const uint8_t*>(text.data()), text.size()})},
      {"ctx_size", options.ctx_size}};
  Json figures = to_json(result);
  figures.erase("seconds");  // the same engine has the same bytes
  quality.update(figures);
  return quality;
}

void record_quality(const std::filesystem::path& engine, const Json& quality) {
  const std::filesystem::path path = engine / "engine.json";
  Json json = parse_json(read_file(path, 256 << 20), path.string());
  json["quality"] = quality;
  write_file(path, json.dump(1, ' ', false, Json::error_handler_t::replace));
}

void check_quality(const Json& quality, const QualityLimits& limits, const std::string& what) {
  if (!limits.any()) return;
  const auto figure = [&](const char* key) {
    const auto found = quality.find(key);
    if (found == quality.end() || !found->is_number())
      throw Error(ErrorKind::kNotFound,
                  "{}: no quality figures are recorded in it, so no limit can be checked: measure "
                  "them with 'whit eval {} --reference MODEL --record'",
                  what, what);
    return found->get<double>();
  };
  const auto named = quality.find("text");
  std::string text =
      named != quality.end() && named->is_string() ? named->get<std::string>() : "the text";
  if (text == "built-in") text = "the built-in text";
  if (limits.ppl_increase) {
    const double increase = figure("ppl_ratio") - 1;
    if (!(increase <= *limits.ppl_increase))
      throw Error(ErrorKind::kResource,
                  "{}: perplexity on {} rises by {:.2f} % ({:.3f} instead of {:.3f}), beyond the "
                  "limit of {:.2f} % (--max-ppl-increase): choose more bits, another mode, or more "
                  "fitting calibration text",
                  what, text, 100 * increase, figure("ppl"), figure("reference_ppl"),
                  100 * *limits.ppl_increase);
  }
  if (limits.kld && !(figure("kld") <= *limits.kld))
    throw Error(
        ErrorKind::kResource,
        "{}: the KL divergence from the original on {} is {:.4f}, beyond the limit of {:.4f} "
        "(--max-kld): choose more bits, another mode, or more fitting calibration text",
        what, text, figure("kld"), *limits.kld);
}

double parse_share(const std::string& text) {
  const bool percent = text.ends_with('%');
  const char* end = text.data() + text.size() - (percent ? 1 : 0);
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !(value >= 0) || !std::isfinite(value))
    throw Error(ErrorKind::kInvalidArgument,
                "\"{}\" is no share: give a number from 0 on, like 0.05 or 5%", text);
  return percent ? value / 100 : value;
}

}  // namespace whit
