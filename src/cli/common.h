// Options and output that several commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "api/build.h"
#include "api/loaded_model.h"
#include "base/json.h"

namespace whit::cli {

// --threads and --isa; --backend where a command can run the model on a GPU.
struct MachineOptions {
  int threads = 0;
  std::string isa = "auto", backend = "cpu";
  void add_to(CLI::App& app);
  void add_backend(CLI::App& app, const std::string& help =
                                      "Where the model runs: cpu, or cuda for an NVIDIA GPU");
};

// The thread pool, ISA and backend that the options ask for.
struct Machine {
  explicit Machine(const MachineOptions& options);
  cpu::Isa isa;
  Backend backend;
  // "CPU avx512", "CUDA".
  std::string description() const;
  ThreadPool pool;
};

// MODEL, the first positional argument.
void add_model(CLI::App& app, std::string& model);
void add_json(CLI::App& app, bool& json);

// --kv-cache-dtype: what Model::kv_format takes.
void add_kv_cache_dtype(CLI::App& app, std::string& dtype);

// --calib, --calib-samples, --calib-length, --seed.
void add_calibration(CLI::App& app, CalibrationRequest& request);

// Prints one JSON document on stdout; bytes that are no UTF-8 become U+FFFD.
void print_json(const Json& json);

// Rows of cells under a header, columns as wide as needed; Markdown, so that it can be pasted.
// Columns other than the first `left_columns` are flush right.
void print_table(const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows, size_t left_columns = 1);

// The whole text file; throws kInvalidArgument where it is empty.
std::string read_text_file(const std::string& path);

// Of a finished build.
Json summary_json(const QuantizeSummary& summary);

}  // namespace whit::cli
