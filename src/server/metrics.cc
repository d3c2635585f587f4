#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>

namespace whit {
namespace {

const std::vector<double> kLatency = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                         1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const std::vector<double> kInterToken = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                         .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const std::vector<double> kStepTokens = {1,   8,    16,   32,   64,   128,  256,
                                         512, 1024, 2048, 4096, 8192, 16384};

// 1, 2, 5, 10, 20, … up to `most`.
std::vector<double> token_bounds(int64_t most) {
  std::vector<double> bounds;
  for (int64_t power = 1;; power *= 10)
    for (const int64_t digit : {1, 2, 5}) {
      if (digit * power > most) return bounds;
      bounds.push_back(static_cast<double>(digit * power));
    }
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

double seconds(RequestTimes::Clock::time_point from, RequestTimes::Clock::time_point to) {
  return std::max(0.0, std::chrono::duration<double>(to - from).count());
}

}  // namespace

void Histogram::add(double value, int64_t times) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[at] += times;
  sum_ += value * static_cast<double>(times);
}

void Histogram::write(std::string& out, const std::string& name, const std::string& labels) const {
  int64_t total = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i];
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{},le=\"{}\"}} {}\n", name, labels,
                   i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf", total);
  }
  fmt::format_to(std::back_inserter(out), "{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels,
                 sum_, name, labels, total);
}

ServerMetrics::ServerMetrics(std::string model_name, int64_t max_context, bool compatible)
    : labels_(fmt::format("engine=\"0\",model_name=\"{}\"", escaped(model_name))),
      compatible_(compatible),
      first_token_(kFirstToken),
      inter_token_(kInterToken),
      per_output_token_(kInterToken),
      end_to_end_(kLatency),
      queue_(kLatency),
      inference_(kLatency),
      prefill_(kLatency),
      decode_(kLatency),
      prompt_length_(token_bounds(max_context)),
      generated_length_(token_bounds(max_context)),
      step_tokens_(kStepTokens),
      choices_({1, 2, 5, 10, 20}),
      max_tokens_(token_bounds(max_context)) {
  for (const char* reason : {"stop", "length", "abort", "error"}) finished_[reason] = 0;
}

void ServerMetrics::record(const StepReport& report) {
  const auto now = RequestTimes::Clock::now();
  std::lock_guard lock(mutex_);
  scheduler_ = report.scheduler;
  pages_used_ = report.pages_used;
  pages_ = report.pages;
  if (report.tokens > 0) step_tokens_.add(static_cast<double>(report.tokens));
  drafts_ += report.drafts;
  drafted_ += report.drafted;
  if (report.accepted_at.size() > accepted_at_.size())
    accepted_at_.resize(report.accepted_at.size());
  for (size_t i = 0; i < report.accepted_at.size(); ++i) accepted_at_[i] += report.accepted_at[i];
  for (const RequestEvent& event : report.events) {
    const std::pair key(event.id, event.choice);
    const int64_t tokens = std::ssize(event.token_ids);
    generated_tokens_ += tokens;
    if (tokens > 0) {
      const auto [last, is_first] = last_token_.try_emplace(key, now);
      if (!is_first) {
        inter_token_.add(seconds(last->second, now) / static_cast<double>(tokens), tokens);
        last->second = now;
      }
    }
    const bool answered = event.times.first_token != RequestTimes::Clock::time_point();
    if (event.first && event.choice == 0 && answered) {
      first_token_.add(seconds(event.times.submitted, event.times.first_token));
      queue_.add(seconds(event.times.submitted, event.times.scheduled));
      prefill_.add(seconds(event.times.scheduled, event.times.first_token));
    }
    if (!event.finished) continue;
    last_token_.erase(key);
    const bool cancelled = event.finish_reason == FinishReason::kCancelled;
    ++finished_[!event.error.empty() ? "error"
                : cancelled          ? "abort"
                                     : std::string(name(event.finish_reason))];
    generated_length_.add(static_cast<double>(event.generated_tokens));
    if (!event.last_choice) continue;
    const RequestTimes& times = event.times;
    prompt_tokens_ += event.prompt_tokens;
    cached_tokens_ += event.cached_tokens;
    prompt_length_.add(static_cast<double>(event.prompt_tokens));
    end_to_end_.add(seconds(times.submitted, times.finished));
    if (!answered) continue;
    const double decode = seconds(times.first_token, times.finished);
    inference_.add(seconds(times.scheduled, times.finished));
    decode_.add(decode);
    if (event.generated_tokens > 1)
      per_output_token_.add(decode / static_cast<double>(event.generated_tokens - 1));
  }
}

void ServerMetrics::record_request(int64_t choices, int64_t max_tokens) {
  std::lock_guard lock(mutex_);
  choices_.add(static_cast<double>(choices));
  max_tokens_.add(static_cast<double>(max_tokens));
}

void ServerMetrics::record_rejection(const std::string& reason) {
  std::lock_guard lock(mutex_);
  ++rejected_[reason];
}

std::string ServerMetrics::text() const {
  std::lock_guard lock(mutex_);
  std::string out;
  write(out, "whit:");
  if (compatible_) write(out, "vllm:");
  return out;
}

void ServerMetrics::write(std::string& out, const std::string& prefix) const {
  const auto head = [&](const char* name, const char* type, const char* help) {
    fmt::format_to(std::back_inserter(out), "# HELP {0}{1} {3}\n# TYPE {0}{1} {2}\n", prefix, name,
                   type, help);
    return prefix + name;
  };
  const auto gauge = [&](const char* name, double value, const char* help) {
    const std::string full = head(name, "gauge", help);
    fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", full, labels_, value);
  };
  const auto counter = [&](const char* name, int64_t value, const char* help) {
    const std::string full = head(name, "counter", help);
    fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", full, labels_, value);
  };
  const auto by_label = [&](const char* name, const char* label,
                            const std::map<std::string, int64_t>& values, const char* help) {
    const std::string full = head(name, "counter", help);
    for (const auto& [value, count] : values)
      fmt::format_to(std::back_inserter(out), "{}{{{},{}=\"{}\"}} {}\n", full, labels_, label,
                     value, count);
  };
  const auto histogram = [&](const char* name, const Histogram& values, const char* help) {
    values.write(out, head(name, "histogram", help), labels_);
  };
  gauge("num_requests_running", static_cast<double>(scheduler_.running),
        "Sequences in the running batch.");
  gauge("num_requests_waiting", static_cast<double>(scheduler_.waiting), "Sequences that wait.");
  gauge("kv_cache_usage_perc",
        static_cast<double>(pages_used_) / static_cast<double>(std::max<int64_t>(1, pages_)),
        "Share of the KV cache's pages in use; 1 is all.");
  counter("prefix_cache_queries_total", scheduler_.prefix_queries,
          "Prompt tokens looked for in the prefix cache.");
  counter("prefix_cache_hits_total", scheduler_.prefix_hits, "Prompt tokens found in it.");
  counter("num_preemptions_total", scheduler_.preemptions, "Sequences that lost their pages.");
  counter("prompt_tokens_total", prompt_tokens_, "Prompt tokens of finished requests.");
  counter("prompt_tokens_cached_total", cached_tokens_, "Of these, taken from the cache.");
  counter("generation_tokens_total", generated_tokens_, "Tokens generated.");
  counter("spec_decode_num_drafts_total", drafts_, "Guessed continuations.");
  counter("spec_decode_num_draft_tokens_total", drafted_, "Tokens guessed.");
  counter("spec_decode_num_accepted_tokens_total",
          std::accumulate(accepted_at_.begin(), accepted_at_.end(), int64_t{0}),
          "Guesses that were right.");
  std::map<std::string, int64_t> by_position;
  for (size_t i = 0; i < accepted_at_.size(); ++i)
    by_position[fmt::format("{}", i)] = accepted_at_[i];
  by_label("spec_decode_num_accepted_tokens_per_pos_total", "position", by_position,
           "Guesses that were right, by their place in the continuation.");
  by_label("request_success_total", "finished_reason", finished_, "Answers by how they ended.");
  by_label("admission_rejections_total", "reason", rejected_, "Requests refused by reason.");
  histogram("time_to_first_token_seconds", first_token_, "From submission to the first token.");
  histogram("inter_token_latency_seconds", inter_token_, "Between tokens of an answer.");
  histogram("request_time_per_output_token_seconds", per_output_token_,
            "Mean time of a request's tokens after the first.");
  histogram("e2e_request_latency_seconds", end_to_end_, "From submission to the end.");
  histogram("request_queue_time_seconds", queue_, "Waiting.");
  histogram("request_inference_time_seconds", inference_, "From the first step to the end.");
  histogram("request_prefill_time_seconds", prefill_, "From the first step to the first token.");
  histogram("request_decode_time_seconds", decode_, "From the first token to the end.");
  histogram("request_prompt_tokens", prompt_length_, "Prompt tokens of a request.");
  histogram("request_generation_tokens", generated_length_, "Tokens of an answer.");
  histogram("iteration_tokens_total", step_tokens_, "Tokens of a step.");
  histogram("request_params_n", choices_, "The parameter n.");
  histogram("request_params_max_tokens", max_tokens_, "The parameter max_tokens.");
}

}  // namespace whit
