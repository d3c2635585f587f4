// Runs of quantization that can be interrupted: what was done up to a layer is kept in a directory
// beside the output, .<name>.resume-<run>, and a run of the same inputs and settings goes on from
// there to the same bytes.
//
// A checkpoint holds what was written of each layer, the reports, and the calibration stream's
// hidden states; everything with its digest. Copying the hidden states takes time (they are
// [tokens, D] f32, twice for "auto"), so by default a layer is only kept once twenty times the last
// copy's time has passed: at most 5 % of a run, and at most that much work is done again.
#pragma once

#include <chrono>

#include "calibrate/coverage.h"
#include "quantize/layer_log.h"
#include "quantize/quantize.h"

namespace whit {

Json to_json(const Recipe& recipe);  // all that decides the engine's content; not its place

// 16 hexadecimal digits of everything that decides the engine's content: program version, model
// (its files' names, sizes and dates, too), recipe, calibration, instruction set.
std::string run_name(const Recipe& recipe, const Model& source, const Json& calibration,
                     const QuantizeOptions& options);

// What a run has to remember between two layers, beside what it wrote.
struct RunState {
  std::vector<GroupReport>& reports;
  std::vector<Coverage>& coverage;
  std::vector<Json>& profiles;
  std::vector<Tensor*> stream;  // f32
};

class Checkpointer {
 public:
  // Keeps nothing.
  Checkpointer() = default;
  // Takes what an earlier process of `run` kept beside `output`; a damaged checkpoint is discarded.
  // Throws kInvalidArgument where another process holds it.
  Checkpointer(const std::filesystem::path& output, const std::string& run,
               QuantizeOptions::Checkpoints when);
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Layers that an earlier process finished; 0 where none did. Writes what they wrote to `output`
  // and restores `state`.
  int restore(LayerOutput& output, RunState state);
  // Why there is something that was not taken over; empty otherwise.
  const std::string& discarded() const { return discarded_; }

  // Directories under construction, to be removed by the next process of this run should this one
  // be killed.
  void remember(const std::vector<std::filesystem::path>& directories);
  // Where the next layer's writes are to be logged; null where nothing is kept.
  std::vector<uint8_t>* log() { return directory_.empty() ? nullptr : &log_; }
  // After layer done − 1 has been written.
  void layer_done(int done, const RunState& state);

  // From now on the destructor leaves the last checkpoint in place; false where there is none.
  bool keep();
  const std::filesystem::path& directory() const { return directory_; }

 private:
  using Clock = std::chrono::steady_clock;
  void open();  // throws where the checkpoint is damaged
  void clear();
  void remove_leftovers(const std::filesystem::path& target);
  std::string write_blob(const std::string& name, std::span<const uint8_t> bytes);
  void check_blob(const std::string& name, const Json& digest) const;

  std::filesystem::path directory_;
  QuantizeOptions::Checkpoints when_ = QuantizeOptions::Checkpoints::kNone;
  int lock_ = -1;
  bool kept_ = false;
  std::string discarded_;
  Json found_;                      // the checkpoint's content
  Json logs_ = Json::array();       // digests of the logs on disk, each of one or more layers
  std::vector<std::string> files_;  // the last checkpoint's hidden states
  std::vector<uint8_t> log_;
  int logged_ = 0;  // logs on disk
  Clock::time_point last_ = Clock::now();
  Clock::duration cost_ = Clock::duration::zero();
};

// Directories under construction beside `output`: what OutputDirectory makes.
std::vector<std::filesystem::path> partial_directories(const std::filesystem::path& output);

// Removes what runs that have ended kept for `output`: a finished engine has made it useless.
void remove_checkpoints(const std::filesystem::path& output);

}  // namespace whit
