// libFuzzer target: an engine directory of arbitrary content, engine.json first, then a zero byte
// and weights.safetensors. Sizes and digests are made to fit, so that what lies behind them is
// reached. It is either refused with an Error or every weight of its plan is safe to read.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/quality_gate.h"
#include "api/report_data.h"
#include "base/error.h"
#include "engine/engine_dir.h"
#include "fuzz/support.h"

namespace {

void read_linears(const whit::EngineDirectory& engine) {
  for (const auto& [module, scheme] : engine.manifest().linears)
    for (const auto& [n, k] : {std::pair{8, 32}, {3, 64}, {5, 33}}) try {
        const whit::Node node{.op = whit::Op::kLinear,
                              .name = module,
                              .n = n,
                              .k = k,
                              .weight_name = module + ".weight"};
        const whit::LinearWeight weight = engine.linear(node);
        std::vector<float> values(static_cast<size_t>(n * k));
        whit::dequantize_rows(weight, 0, n, values.data());
      } catch (const whit::Error&) {
      }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const whit::fuzz::Directory scratch;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  if (end == text.npos) return 0;
  try {
    whit::Json manifest = whit::parse_json(text.substr(0, end), "fuzz");
    if (!manifest.is_object()) return 0;
    const std::string_view weights = text.substr(end + 1);
    manifest["files"] = whit::Json::object();
    manifest["files"]["weights.safetensors"] = {
        {"bytes", weights.size()}, {"xxh3_128", whit::digest({data + end + 1, weights.size()})}};
    whit::write_file(scratch.path / "weights.safetensors", weights);
    whit::write_file(scratch.path / "engine.json",
                     manifest.dump(-1, ' ', false, whit::Json::error_handler_t::replace));
    const whit::EngineDirectory engine(scratch.path);
    read_linears(engine);
    engine.manifest().scheme_name();
    if (engine.manifest().quality.is_object()) {
      const whit::Json& config = whit::fuzz::tiny_model().checkpoint()->config();
      whit::write_file(scratch.path / "config.json", config.dump());
      const whit::Model model = whit::Model::open(scratch.path);
      const whit::Json report = whit::report_engine("fuzz", model, nullptr);
      whit::recommend(whit::Json::array({report}));
      model.kv_format("int8");
      model.kv_format("int4");
    }
    whit::check_quality(engine.manifest().quality, {.ppl_increase = 0.1, .kld = 0.1}, "fuzz");
  } catch (const whit::Error&) {
  }
  return 0;
}
