// An HTTP/1.1 server: connections, limits, timeouts, TLS, streams and an orderly end. What requests
// mean is its handlers' business.
//
// Parsing, sockets and TLS are Boost.Beast and Asio (http_server.cc is the only file that sees
// them). One thread does all input and output; requests are handled on a few others, so that a long
// text being tokenized holds up nobody's stream.
//
// Bounded before work begins: connections, header bytes and fields, body bytes of each request and
// of all together, the time that a client may take to send or to read, the bytes waiting to be
// sent.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace whit {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                         // 0: any that is free
  std::string certificate_file, key_file;  // PEM; both or none
  int64_t max_connections = 1024;
  int64_t max_header_bytes = 16 << 10;
  int64_t max_header_fields = 100;
  int64_t max_body_bytes = 8 << 20;
  int64_t max_bodies_bytes = 256 << 20;   // of all requests together
  int64_t max_unsent_bytes = 16 << 20;    // of one response
  std::chrono::seconds idle_timeout{60};  // to send a request's header
  std::chrono::seconds body_timeout{30};
  std::chrono::seconds write_timeout{30};
  std::chrono::seconds drain_timeout{60};  // after a first signal
  int workers = 2;
};

struct HttpRequest {
  std::string method, path;  // of the target without its query
  std::string authorization;
  std::string fetch_site;  // Sec-Fetch-Site: browsers say from which page they were sent
  std::string peer;
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

// Answers one request: with send(), or with begin_stream(), write() … and end(). From any thread.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(HttpResponse response) = 0;
  virtual void begin_stream(const std::string& content_type) = 0;
  virtual void write(std::string_view data) = 0;
  virtual void end() = 0;
  // `gone` is called, once and on the input thread, where the client leaves before the end.
  virtual void on_gone(std::function<void()> gone) = 0;
};

class HttpServer {
 public:
  struct Handlers {
    // Before a request's body is read: a refusal, or nothing. On the input thread.
    std::function<std::optional<HttpResponse>(const HttpRequest& head)> admit;
    // On a worker thread. What it throws becomes a 500.
    std::function<void(HttpRequest, std::shared_ptr<HttpReply>)> handle;
    // The response to what the server itself refuses.
    std::function<HttpResponse(int status, std::string message)> refuse;
    // A signal came: no more requests are taken. On the input thread.
    std::function<void()> draining;
    // The drain takes too long, or a second signal came.
    std::function<void()> give_up;
  };

  // Throws kIo where the address cannot be had, or a certificate is not usable.
  HttpServer(const HttpServerOptions& options, Handlers handlers);
  ~HttpServer();

  int port() const;
  std::string address() const;  // "http://127.0.0.1:8000"
  // Serves until a SIGTERM or SIGINT, then until all requests are answered.
  void run();
  // Runs on the input thread, soon.
  void post(std::function<void()> task);
  int64_t connections() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit
