// Figures of the server for Prometheus, in its text format 0.0.4. Names behind the prefix, labels
// and buckets are those of vLLM, so that dashboards made for it can be used.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/engine_loop.h"

namespace whit {

// Counts of values up to each bound; the last bucket has no bound.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds)
      : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value, int64_t times = 1);
  void write(std::string& out, const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;
  double sum_ = 0;
};

class ServerMetrics {
 public:
  // `compatible`: every figure once more under the prefix "vllm:".
  ServerMetrics(std::string model_name, int64_t max_context, bool compatible);

  // Of each step, in order.
  void record(const StepReport& report);
  void record_request(int64_t choices, int64_t max_tokens);
  void record_rejection(const std::string& reason);

  std::string text() const;

 private:
  void write(std::string& out, const std::string& prefix) const;

  std::string labels_;
  bool compatible_;
  mutable std::mutex mutex_;
  SchedulerStats scheduler_;
  int64_t pages_used_ = 0, pages_ = 1;
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, generated_tokens_ = 0;
  int64_t drafts_ = 0, drafted_ = 0;
  std::vector<int64_t> accepted_at_;
  std::map<std::string, int64_t> finished_, rejected_;
  Histogram first_token_, inter_token_, per_output_token_, end_to_end_, queue_, inference_,
      prefill_, decode_, prompt_length_, generated_length_, step_tokens_, choices_, max_tokens_;
  std::map<std::pair<RequestId, int64_t>, RequestTimes::Clock::time_point> last_token_;
};

}  // namespace whit
