// Calibration statistics in a file: sums, so that files of several texts can be merged, and
// digested, so that a damaged one is noticed.
//
// A safetensors file. Metadata: "format" "whit-calibration", "version", "info" (JSON: the model's
// digest, the data, by set). By decoder layer and input, named after the first linear that reads
// it:
//   <module>.input.mean_abs     F32 [K]          Σ|x|, search split
//   <module>.input.max_abs      F32 [K]          both splits
//   <module>.input.<split>.gram F32 [K(K+1)/2]   Σ x·xᵀ, upper triangle by rows
//   <module>.input.<split>.sample F32 [S, K]     input rows; S = min(512, tokens of the split)
//   <module>.input.counts       I64 [6]          tokens, gram tokens, sample rows: search, held out
// and, last, digest U8 [16]: XXH3-128 of "info" and of the tensors' bytes in their order.
// Size: about 2·K² bytes by split and input beside 2048·K of samples; read and written one input at
// a time.
#pragma once

#include <filesystem>
#include <memory>

#include "calibrate/calibrator.h"
#include "checkpoint/safetensors.h"

namespace whit {

struct StatisticsInfo {
  std::string model;           // description of the model, for people
  std::string model_digest;    // Checkpoint::digest()
  Json data = Json::array();   // CalibrationData::description() of every set in it
  int64_t tokens[2] = {0, 0};  // of both splits
};

class StatisticsWriter {
 public:
  // Writes to `path` itself: give a temporary name.
  StatisticsWriter(const std::filesystem::path& path, const Graph& graph,
                   const StatisticsInfo& info);
  ~StatisticsWriter();
  void write(const std::vector<InputStats>& sums);  // layer by layer, as observe_sums gives them
  void finish();
  // Bytes of the whole file, before it is written.
  static int64_t bytes(const Graph& graph, const int64_t (&tokens)[2]);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class StatisticsFile {
 public:
  // Throws kInvalidData for anything damaged or not of this format, kUnsupported for a newer
  // version.
  explicit StatisticsFile(const std::filesystem::path& path);

  const StatisticsInfo& info() const { return info_; }
  // Throws kInvalidArgument where it is of another model.
  void check_model(const std::string& model_digest) const;
  // Sums of one layer; throws kInvalidData where they do not fit the graph or are not finite.
  std::vector<InputStats> sums(const Graph& graph, int layer) const;
  // The same as means: what LayerStream::observe gives, to the bit.
  std::vector<InputStats> layer(const Graph& graph, int layer) const;
  const std::string& where() const { return file_->where(); }

 private:
  std::unique_ptr<SafetensorsFile> file_;
  StatisticsInfo info_;
};

// The statistics of all files together, as if their data had been one set: sums add (rescaled where
// files took different shares of their tokens into the Gram matrix), sampled rows are drawn in
// proportion to tokens. Throws kInvalidArgument for files of different models, and for a data set
// that is in two of them.
void merge_statistics(std::span<const StatisticsFile* const> files, const Graph& graph,
                      const std::filesystem::path& output);

}  // namespace whit
