// What a quantization will need and take, told in seconds: sizes, peak memory, time, and what does
// not divide. One window of tokens runs through the first layer, and one scaling group is decided;
// the rest is arithmetic on the model's shapes.
#pragma once

#include <string>
#include <vector>

#include "api/build.h"

namespace whit {

struct Preflight {
  struct Part {
    std::string name;
    double value = 0;  // seconds, or bytes
  };
  int64_t calibration_tokens = 0;  // at most
  int64_t engine_bytes = 0;        // of the weights
  int64_t disk_free = -1;          // at the output; −1: unknown
  std::vector<Part> memory;        // resident at the peak
  int64_t peak_bytes = 0;          // their sum
  int64_t available_bytes = 0;     // memory that the system could give now
  std::vector<Part> time;
  double seconds = 0;              // their sum
  std::vector<std::string> notes;  // short last groups, limits that will be passed, …
  struct Ranks {
    int ranks = 0;
    std::string obstacle;  // empty: the layers can be shared by so many devices
  };
  std::vector<Ranks> tensor_parallel;
  double measured_s = 0;  // what this took
};

// Throws where the plan cannot be carried out at all, as build() would.
Preflight preflight(const Model& model, const BuildPlan& plan, cpu::Isa isa, ThreadPool& pool);
Json to_json(const Preflight& preflight);

// Why `ranks` devices cannot share the layers of a model in this scheme; empty where they can.
std::string tensor_parallel_obstacle(const ModelConfig& config, const QuantScheme& scheme,
                                     int64_t ranks);

}  // namespace whit
