// A client that measures a server: many streams of completions at once, over plain HTTP on sockets
// of its own, in one thread that mostly sleeps (it shares the machine with the server it measures).
//
//   closed loop   `concurrency` requests are always under way
//   open loop     requests begin at random times of a Poisson process of `rate` a second, however
//                 long the others take (what users do)
// Definitions are those of vLLM's benchmark: TTFT from sending to the first token; ITL between
// tokens of a stream; TPOT (end − first token) / (tokens − 1) of a request; goodput: requests a
// second that met the limits given.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace whit {

struct LoadOptions {
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string model, api_key;
  int64_t requests = 64;
  int64_t concurrency = 8;      // 0: no bound (open loop)
  double rate = 0;              // requests a second; 0: closed loop
  int64_t prompt_tokens = 128;  // roughly: words of an English text
  int64_t shared_tokens = 0;    // of these, the same in all prompts
  int64_t output_tokens = 64;
  bool ignore_eos = true;
  uint64_t seed = 1;
  double ttft_limit_ms = 0, tpot_limit_ms = 0;  // of goodput; 0: none
  double timeout_s = 600;
};

struct LoadResult {
  int64_t completed = 0, failed = 0, prompt_tokens = 0, output_tokens = 0, good = 0;
  int64_t most_streams = 0;
  double duration_s = 0, client_cpu_s = 0;
  std::vector<double> ttft_ms, tpot_ms, itl_ms, e2e_ms;
  std::string first_failure;
};

// Throws kIo where the server cannot be reached at all.
LoadResult generate_load(const LoadOptions& options);

Json to_json(const LoadOptions& options, const LoadResult& result);

// The value below which `share` of the values lie, linearly interpolated; 0 of nothing.
double percentile(std::vector<double> values, double share);

}  // namespace whit
