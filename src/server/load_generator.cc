#include "server/load_generator.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "base/embedded.h"
#include "base/error.h"
#include "base/progress.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

// The words of the evaluation text, so that prompts are of a natural kind.
std::vector<std::string_view> words() {
  std::vector<std::string_view> found;
  const std::string_view text = embedded::eval_text();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of(" \n", begin), text.size());
    if (end > begin) found.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return found;
}

// One request's connection.
struct Stream {
  int socket = -1;
  std::string out;
  size_t sent = 0;
  std::string in;      // not yet understood
  std::string events;  // of the body, not yet understood
  bool head_done = false, chunked = false, done = false;
  int status = 0;
  int64_t chunk_left = 0;
  Clock::time_point start, first, last;
  int64_t chunks = 0, prompt_tokens = 0, output_tokens = 0;
  std::vector<double> gaps_ms;
  std::string failure;

  ~Stream() {
    if (socket >= 0) ::close(socket);
  }
};

class Generator {
 public:
  explicit Generator(const LoadOptions& options)
      : options_(options), words_(words()), random_(options.seed) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int error =
        ::getaddrinfo(options.host.c_str(), std::to_string(options.port).c_str(), &hints, &found);
    if (error != 0) throw Error(ErrorKind::kIo, "{}: {}", options.host, ::gai_strerror(error));
    std::memcpy(&address_, found->ai_addr, found->ai_addrlen);
    address_size_ = found->ai_addrlen;
    family_ = found->ai_family;
    ::freeaddrinfo(found);
    std::uniform_int_distribution<size_t> any(0, words_.size() - 1);
    shared_ = text(any(random_), options.shared_tokens);
  }

  LoadResult run() {
    const double cpu = cpu_seconds();
    begin_ = Clock::now();
    next_ = begin_;
    while (ended_ < options_.requests) {
      check_interrupt();
      start_due();
      wait();
      if (ms_between(begin_, Clock::now()) > options_.timeout_s * 1000)
        throw Error(ErrorKind::kIo, "the server has not answered {} of {} requests in {} s",
                    options_.requests - ended_, options_.requests, options_.timeout_s);
    }
    result_.duration_s = ms_between(begin_, Clock::now()) / 1000;
    result_.client_cpu_s = cpu_seconds() - cpu;
    return std::move(result_);
  }

 private:
  std::string text(size_t first, int64_t count) const {
    std::string result;
    for (int64_t i = 0; i < count; ++i) {
      result += words_[(first + static_cast<size_t>(i)) % words_.size()];
      result += ' ';
    }
    return result;
  }

  void start_due() {
    const auto now = Clock::now();
    while (started_ < options_.requests &&
           (options_.concurrency == 0 || std::ssize(streams_) < options_.concurrency) &&
           (options_.rate == 0 || next_ <= now)) {
      start();
      if (options_.rate > 0)
        next_ += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
            std::exponential_distribution<double>(options_.rate)(random_)));
    }
  }

  void start() {
    ++started_;
    auto stream = std::make_unique<Stream>();
    std::uniform_int_distribution<size_t> any(0, words_.size() - 1);
    Json body = {
        {"prompt", shared_ + text(any(random_), options_.prompt_tokens - options_.shared_tokens)},
        {"max_tokens", options_.output_tokens},
        {"temperature", 0},
        {"stream", true},
        {"stream_options", {{"include_usage", true}}}};
    if (!options_.model.empty()) body["model"] = options_.model;
    if (options_.ignore_eos) body["ignore_eos"] = true;
    const std::string content = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    stream->out = fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\n"
        "Connection: close\r\nContent-Length: {}\r\n",
        options_.host, options_.port, content.size());
    if (!options_.api_key.empty())
      stream->out += "Authorization: Bearer " + options_.api_key + "\r\n";
    stream->out += "\r\n" + content;
    stream->start = Clock::now();
    stream->socket = ::socket(family_, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(stream->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (stream->socket < 0 ||
        (::connect(stream->socket, reinterpret_cast<sockaddr*>(&address_), address_size_) != 0 &&
         errno != EINPROGRESS))
      throw Error(ErrorKind::kIo, "{} port {}: {}", options_.host, options_.port,
                  std::strerror(errno));
    streams_.push_back(std::move(stream));
    result_.most_streams = std::max<int64_t>(result_.most_streams, std::ssize(streams_));
  }

  void wait() {
    std::vector<pollfd> polls;
    for (const auto& stream : streams_)
      polls.push_back({stream->socket,
                       static_cast<short>(stream->sent < stream->out.size() ? POLLOUT : POLLIN),
                       0});
    int timeout = 1000;
    if (options_.rate > 0 && started_ < options_.requests)
      timeout = std::clamp(static_cast<int>(ms_between(Clock::now(), next_)) + 1, 0, 1000);
    ::poll(polls.data(), polls.size(), timeout);
    for (size_t i = 0; i < polls.size(); ++i) {
      if (polls[i].revents == 0) continue;
      Stream& stream = *streams_[i];
      if (polls[i].events == POLLOUT)
        send(stream);
      else
        receive(stream);
    }
    std::erase_if(streams_, [&](const std::unique_ptr<Stream>& stream) {
      if (stream->done) finish(*stream);
      return stream->done;
    });
  }

  void fail(Stream& stream, std::string why) {
    stream.failure = std::move(why);
    stream.done = true;
  }

  void send(Stream& stream) {
    const ssize_t sent = ::send(stream.socket, stream.out.data() + stream.sent,
                                stream.out.size() - stream.sent, MSG_NOSIGNAL);
    if (sent >= 0)
      stream.sent += static_cast<size_t>(sent);
    else if (errno != EAGAIN && errno != EINTR)
      fail(stream, std::strerror(errno));
  }

  void receive(Stream& stream) {
    char buffer[16384];
    const ssize_t got = ::recv(stream.socket, buffer, sizeof(buffer), 0);
    if (got < 0) {
      if (errno != EAGAIN && errno != EINTR) fail(stream, std::strerror(errno));
      return;
    }
    if (got == 0) {
      if (stream.status != 200) return fail(stream, fmt::format("HTTP status {}", stream.status));
      stream.done = true;
      return;
    }
    stream.in.append(buffer, static_cast<size_t>(got));
    if (!stream.head_done && !read_head(stream)) return;
    read_body(stream);
    read_events(stream);
  }

  bool read_head(Stream& stream) {
    const size_t end = stream.in.find("\r\n\r\n");
    if (end == std::string::npos) return false;
    std::string head = stream.in.substr(0, end);
    std::transform(head.begin(), head.end(), head.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (head.size() > 12) std::from_chars(head.data() + 9, head.data() + 12, stream.status);
    stream.chunked = head.find("transfer-encoding: chunked") != std::string::npos;
    stream.in.erase(0, end + 4);
    stream.head_done = true;
    return true;
  }

  void read_body(Stream& stream) {
    if (!stream.chunked) {
      stream.events += std::exchange(stream.in, {});
      return;
    }
    while (true) {
      if (stream.chunk_left == 0) {
        const size_t begin = stream.in.starts_with("\r\n") ? 2 : 0;
        const size_t end = stream.in.find("\r\n", begin);
        if (end == std::string::npos) return;
        std::from_chars(stream.in.data() + begin, stream.in.data() + end, stream.chunk_left, 16);
        stream.in.erase(0, end + 2);
        if (stream.chunk_left == 0) {
          if (stream.status == 200)
            stream.done = true;
          else
            fail(stream, fmt::format("HTTP status {}", stream.status));
          return;
        }
      }
      const size_t taken = std::min(stream.in.size(), static_cast<size_t>(stream.chunk_left));
      if (taken == 0) return;
      stream.events.append(stream.in, 0, taken);
      stream.in.erase(0, taken);
      stream.chunk_left -= static_cast<int64_t>(taken);
    }
  }

  static int64_t number_after(std::string_view text, std::string_view key) {
    const size_t at = text.find(key);
    int64_t value = 0;
    if (at != std::string_view::npos)
      std::from_chars(text.data() + at + key.size(), text.data() + text.size(), value);
    return value;
  }

  void read_events(Stream& stream) {
    size_t begin = 0;
    for (size_t end; (end = stream.events.find("\n\n", begin)) != std::string::npos;
         begin = end + 2) {
      const std::string_view event(stream.events.data() + begin, end - begin);
      if (event.find("\"choices\":[{") != std::string_view::npos) {
        const auto now = Clock::now();
        if (stream.chunks++ == 0)
          stream.first = now;
        else
          stream.gaps_ms.push_back(ms_between(stream.last, now));
        stream.last = now;
      }
      if (const int64_t tokens = number_after(event, "\"completion_tokens\":"); tokens > 0) {
        stream.output_tokens = tokens;
        stream.prompt_tokens = number_after(event, "\"prompt_tokens\":");
      }
      // With its colon: "error" may be a token's text. Quotes in a text come with a backslash.
      if (event.find("\"error\":") != std::string_view::npos)
        stream.failure = std::string(event.substr(0, 200));
    }
    stream.events.erase(0, begin);
  }

  void finish(Stream& stream) {
    ++ended_;
    if (!stream.failure.empty() || stream.chunks == 0) {
      ++result_.failed;
      if (result_.first_failure.empty())
        result_.first_failure = stream.failure.empty() ? "no tokens came" : stream.failure;
      return;
    }
    ++result_.completed;
    const int64_t tokens = stream.output_tokens > 0 ? stream.output_tokens : stream.chunks;
    result_.output_tokens += tokens;
    result_.prompt_tokens += stream.prompt_tokens;
    const double ttft = ms_between(stream.start, stream.first);
    const double tpot =
        tokens > 1 ? ms_between(stream.first, stream.last) / static_cast<double>(tokens - 1) : 0;
    result_.ttft_ms.push_back(ttft);
    if (tokens > 1) result_.tpot_ms.push_back(tpot);
    result_.e2e_ms.push_back(ms_between(stream.start, stream.last));
    result_.itl_ms.insert(result_.itl_ms.end(), stream.gaps_ms.begin(), stream.gaps_ms.end());
    if ((options_.ttft_limit_ms == 0 || ttft <= options_.ttft_limit_ms) &&
        (options_.tpot_limit_ms == 0 || tpot <= options_.tpot_limit_ms))
      ++result_.good;
  }

  const LoadOptions& options_;
  std::vector<std::string_view> words_;
  std::mt19937_64 random_;
  std::string shared_;
  sockaddr_storage address_{};
  socklen_t address_size_ = 0;
  int family_ = AF_INET;
  std::vector<std::unique_ptr<Stream>> streams_;
  int64_t started_ = 0, ended_ = 0;
  Clock::time_point begin_, next_;
  LoadResult result_;
};

}  // namespace

LoadResult generate_load(const LoadOptions& options) { return Generator(options).run(); }

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

Json to_json(const LoadOptions& options, const LoadResult& result) {
  Json json = {
      {"host", options.host},
      {"port", options.port},
      {"concurrency", options.concurrency},
      {"request_rate", options.rate > 0 ? Json(options.rate) : Json("inf")},
      {"num_prompts", options.requests},
      {"seed", options.seed},
      {"completed", result.completed},
      {"failed", result.failed},
      {"duration", result.duration_s},
      {"total_input_tokens", result.prompt_tokens},
      {"total_output_tokens", result.output_tokens},
      {"request_throughput", static_cast<double>(result.completed) / result.duration_s},
      {"request_goodput", static_cast<double>(result.good) / result.duration_s},
      {"output_throughput", static_cast<double>(result.output_tokens) / result.duration_s},
      {"total_token_throughput",
       static_cast<double>(result.output_tokens + result.prompt_tokens) / result.duration_s},
      {"max_concurrent_requests", result.most_streams},
      {"client_cpu_s", result.client_cpu_s}};
  const auto add = [&](const std::string& name, const std::vector<double>& values) {
    json["mean_" + name + "_ms"] = values.empty()
                                       ? 0
                                       : std::accumulate(values.begin(), values.end(), 0.0) /
                                             static_cast<double>(values.size());
    json["median_" + name + "_ms"] = percentile(values, 0.5);
    for (const int p : {90, 95, 99})
      json[fmt::format("p{}_{}_ms", p, name)] = percentile(values, p / 100.0);
  };
  add("ttft", result.ttft_ms);
  add("tpot", result.tpot_ms);
  add("itl", result.itl_ms);
  add("e2el", result.e2e_ms);
  if (!result.first_failure.empty()) json["first_failure"] = result.first_failure;
  return json;
}

}  // namespace whit
