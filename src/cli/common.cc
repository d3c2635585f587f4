#include "cli/common.h"

#include <algorithm>
#include <cstdio>

#include "base/file.h"

namespace whit::cli {
namespace {

// Columns that a UTF-8 text takes: its code points, as no cell holds wide or combining characters.
size_t width(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

}  // namespace

void MachineOptions::add_to(CLI::App& app) {
  app.add_option("-t,--threads", threads, "Threads; 0: one for each CPU that this process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--isa", isa,
                 "Force the kernels' instruction set: portable, avx2, avx512, amx or auto")
      ->check(CLI::IsMember({"auto", "portable", "avx2", "avx512", "amx"}))
      ->capture_default_str();
}

void MachineOptions::add_backend(CLI::App& app, const std::string& help) {
  app.add_option("--backend", backend, help)
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

Machine::Machine(const MachineOptions& options)
    : isa(resolve_isa(options.isa)),
      backend(parse_backend(options.backend)),
      pool(options.threads) {}

std::string Machine::description() const {
  return backend == Backend::kCuda ? "CUDA" : fmt::format("CPU {}", cpu::name(isa));
}

void add_model(CLI::App& app, std::string& model) {
  app.add_option("MODEL", model, "Hugging Face directory, .gguf file or engine directory")
      ->required();
}

void add_json(CLI::App& app, bool& json) {
  app.add_flag("--json", json, "Print one JSON document and nothing else");
}

void add_kv_cache_dtype(CLI::App& app, std::string& dtype) {
  app.add_option(
         "--kv-cache-dtype", dtype,
         "Keys and values in f32, f16, bf16, or by codes of 8 or 4 bits, fp8 on a GPU alone; auto: "
         "the model's, bf16 in place of f16 for quantized weights on a CPU with AMX")
      ->check(CLI::IsMember(std::vector<std::string>(kKvCacheDtypes.begin(), kKvCacheDtypes.end())))
      ->capture_default_str();
}

void add_calibration(CLI::App& app, CalibrationRequest& request) {
  app.add_option_function<std::vector<std::string>>(
         "--calib",
         [&request](const std::vector<std::string>& sources) {
           request.source.clear();
           for (const std::string& source : sources)
             request.source += (request.source.empty() ? "" : "\n") + source;
         },
         "Calibration data: a text file; a .jsonl file of texts, conversations or token ids; or "
         "'self': the model writes it. Repeated, each with :WEIGHT, a mixture [self]")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--calib-samples", request.samples, "Calibration sequences")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--calib-length", request.length, "Tokens of each calibration sequence")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--seed", request.seed, "Seed of the text that the model writes")
      ->capture_default_str();
}

void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

void print_table(const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows, size_t left_columns) {
  std::vector<size_t> widths;
  for (const std::string& cell : header) widths.push_back(std::max<size_t>(3, width(cell)));
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  const auto print_row = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width(row[i]), ' ');
      fmt::print("| {}{} ", i < left_columns ? row[i] : padding,
                 i < left_columns ? padding : row[i]);
    }
    fmt::print("|\n");
  };
  print_row(header);
  for (size_t i = 0; i < widths.size(); ++i)
    fmt::print("|{}{}", std::string(widths[i] + 1, '-'), i < left_columns ? "-" : ":");
  fmt::print("|\n");
  for (const auto& row : rows) print_row(row);
}

std::string read_text_file(const std::string& path) {
  std::string text = read_file(path, uint64_t{1} << 30);
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw Error(ErrorKind::kInvalidArgument, "{} is empty; give a text file", path);
  return text;
}

Json summary_json(const QuantizeSummary& summary) {
  Json reports = Json::array();
  for (const GroupReport& report : summary.reports) reports.push_back(whit::to_json(report));
  Json json = {{"output", summary.output.string()},
               {"engine_bytes", summary.engine_bytes},
               {"bits_per_weight", summary.bits_per_weight},
               {"warnings", summary.warnings}};
  if (!summary.mixed.empty()) json["mixed"] = summary.mixed;
  if (!summary.rotation.is_null()) json["rotation"] = summary.rotation;
  if (!summary.quality.is_null()) json["quality"] = summary.quality;
  if (!summary.device.empty()) {
    json["device"] = summary.device;
    json["peak_device_memory_bytes"] = summary.peak_device_bytes;
  }
  if (summary.resumed_layers > 0) json["resumed_layers"] = summary.resumed_layers;
  json["report"] = std::move(reports);
  return json;
}

}  // namespace whit::cli
