#include "server/http_server.h"

#include <poll.h>

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <csignal>
#include <set>

#include "base/error.h"

namespace whit {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = net::ip::tcp;
using boost::system::error_code;

namespace {

// How often a client that has sent more than its request is looked after: its leaving is then not
// an event of its own.
constexpr std::chrono::milliseconds kGoneInterval{200};

bool has_left(int socket) {
  pollfd poll{socket, POLLRDHUP, 0};
  return ::poll(&poll, 1, 0) > 0 && (poll.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

std::string_view reason(int status) {
  const auto text = http::obsolete_reason(static_cast<http::status>(status));
  return {text.data(), text.size()};
}

}  // namespace

struct HttpServer::Impl {
  class Connection;
  template <typename Stream>
  class StreamConnection;
  class Reply;

  Impl(const HttpServerOptions& chosen, Handlers given)
      : options(chosen),
        handlers(std::move(given)),
        workers(static_cast<size_t>(chosen.workers)),
        acceptor(io),
        signals(io),
        drain_timer(io) {
    if (options.certificate_file.empty() != options.key_file.empty())
      throw Error(ErrorKind::kInvalidArgument,
                  "TLS needs both a certificate and its key; one of them was given");
    error_code error;
    if (!options.certificate_file.empty()) {
      tls.emplace(net::ssl::context::tls_server);
      tls->set_options(net::ssl::context::default_workarounds | net::ssl::context::no_sslv2 |
                       net::ssl::context::no_sslv3 | net::ssl::context::no_tlsv1 |
                       net::ssl::context::no_tlsv1_1);
      tls->use_certificate_chain_file(options.certificate_file, error);
      if (!error) tls->use_private_key_file(options.key_file, net::ssl::context::pem, error);
      if (error)
        throw Error(ErrorKind::kIo, "certificate {} with key {}: {}", options.certificate_file,
                    options.key_file, error.message());
    }
    listen();
  }

  void listen() {
    error_code error;
    tcp::resolver resolver(io);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port),
                         tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error) throw Error(ErrorKind::kIo, "the address {}: {}", options.host, error.message());
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(net::socket_base::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(net::socket_base::max_listen_connections, error);
    if (error)
      throw Error(ErrorKind::kIo, "cannot listen on {} port {}: {}", options.host, options.port,
                  error.message());
  }

  void run();
  net::awaitable<void> accept();
  void drain();
  void give_up();

  HttpServerOptions options;
  Handlers handlers;
  net::io_context io{1};
  net::thread_pool workers;
  tcp::acceptor acceptor;
  net::signal_set signals;
  net::steady_timer drain_timer;
  std::optional<net::ssl::context> tls;
  std::set<Connection*> open;
  std::atomic<int64_t> open_count{0};
  int64_t bodies_bytes = 0;
  bool draining = false;
};

// A connection as the server sees it: something that can be told to close.
class HttpServer::Impl::Connection {
 public:
  virtual ~Connection() = default;
  virtual void close_if_idle() = 0;
  virtual void close() = 0;
  virtual void wake() = 0;
};

// Bytes on their way to one client. Shared by the connection and whoever answers.
class HttpServer::Impl::Reply : public HttpReply,
                                public std::enable_shared_from_this<HttpServer::Impl::Reply> {
 public:
  Reply(Impl& server, std::weak_ptr<Connection> connection, bool keep_alive, bool chunked,
        bool body_wanted)
      : server_(server),
        connection_(std::move(connection)),
        keep_alive_(keep_alive && chunked),
        chunked_(chunked),
        body_wanted_(body_wanted) {}

  void send(HttpResponse response) override {
    std::string bytes = head(response.status, response.content_type, response.headers);
    bytes += fmt::format("Content-Length: {}\r\n\r\n", response.body.size());
    if (body_wanted_) bytes += response.body;
    put(std::move(bytes), /*last=*/true);
  }

  void begin_stream(const std::string& content_type) override {
    std::string bytes = head(200, content_type, {{"Cache-Control", "no-cache"}});
    bytes += chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n";
    put(std::move(bytes), false);
  }

  void write(std::string_view data) override {
    if (data.empty()) return;
    put(chunked_ ? fmt::format("{:x}\r\n{}\r\n", data.size(), data) : std::string(data), false);
  }

  void end() override { put(chunked_ ? "0\r\n\r\n" : "", true); }

  void on_gone(std::function<void()> gone) override {
    {
      std::lock_guard lock(mutex_);
      if (!gone_) {
        on_gone_ = std::move(gone);
        return;
      }
    }
    gone();
  }

  // The connection's side: what is to be sent now; `last` where nothing follows.
  std::string take(bool& last) {
    std::lock_guard lock(mutex_);
    last = last_;
    return std::exchange(pending_, {});
  }
  bool keep_alive() const { return keep_alive_; }
  bool too_slow() {
    std::lock_guard lock(mutex_);
    return static_cast<int64_t>(pending_.size()) > server_.options.max_unsent_bytes;
  }

  void client_gone() {
    std::function<void()> gone;
    {
      std::lock_guard lock(mutex_);
      gone_ = true;
      pending_.clear();
      gone = std::exchange(on_gone_, {});
    }
    if (gone) gone();
  }

 private:
  std::string head(int status, const std::string& content_type,
                   const std::vector<std::pair<std::string, std::string>>& headers) {
    std::string bytes = fmt::format(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\nConnection: "
        "{}\r\n",
        status, reason(status), content_type, keep_alive_ ? "keep-alive" : "close");
    for (const auto& [name, value] : headers) bytes += fmt::format("{}: {}\r\n", name, value);
    return bytes;
  }

  void put(std::string bytes, bool last) {
    {
      std::lock_guard lock(mutex_);
      if (gone_ || last_) return;
      pending_ += bytes;
      last_ = last;
      if (std::exchange(told_, true)) return;
    }
    net::post(server_.io, [self = shared_from_this()] {
      {
        std::lock_guard lock(self->mutex_);
        self->told_ = false;
      }
      if (const auto connection = self->connection_.lock()) connection->wake();
    });
  }

  Impl& server_;
  std::weak_ptr<Connection> connection_;
  bool keep_alive_, chunked_, body_wanted_;
  std::mutex mutex_;
  std::string pending_;
  bool last_ = false, gone_ = false, told_ = false;
  std::function<void()> on_gone_;
};

template <typename Stream>
class HttpServer::Impl::StreamConnection
    : public Connection,
      public std::enable_shared_from_this<HttpServer::Impl::StreamConnection<Stream>> {
 public:
  template <typename... Args>
  explicit StreamConnection(Impl& server, Args&&... args)
      : server_(server), stream_(std::forward<Args>(args)...), wake_(server.io), watch_(server.io) {
    wake_.expires_at(net::steady_timer::time_point::max());
    server_.open.insert(this);
    ++server_.open_count;
  }
  ~StreamConnection() override {
    server_.open.erase(this);
    --server_.open_count;
    if (server_.draining && server_.open.empty()) server_.drain_timer.cancel();
  }

  void close_if_idle() override {
    if (idle_) close();
  }
  void close() override {
    error_code ignored;
    lowest().socket().close(ignored);
    wake();
  }
  void wake() override { wake_.cancel(); }

  net::awaitable<void> run() {
    const auto self = this->shared_from_this();  // lives as long as this coroutine
    error_code error;
    const auto endpoint = lowest().socket().remote_endpoint(error);
    if (!error) peer_ = endpoint.address().to_string();
    lowest().socket().set_option(tcp::no_delay(true), error);
    if constexpr (kTls) {
      lowest().expires_after(server_.options.body_timeout);
      co_await stream_.async_handshake(net::ssl::stream_base::server,
                                       net::redirect_error(net::use_awaitable, error));
      if (error) co_return;
    }
    while (co_await serve_one() && !server_.draining) {
    }
    if constexpr (kTls) {
      lowest().expires_after(std::chrono::seconds(1));
      co_await stream_.async_shutdown(net::redirect_error(net::use_awaitable, error));
    }
    lowest().socket().shutdown(tcp::socket::shutdown_send, error);
  }

 private:
  static constexpr bool kTls = !std::is_same_v<Stream, beast::tcp_stream>;
  using Parser = http::request_parser<http::string_body>;

  beast::tcp_stream& lowest() { return beast::get_lowest_layer(stream_); }

  // One request; false where the connection is to be closed.
  net::awaitable<bool> serve_one() {
    error_code error;
    Parser parser;
    parser.header_limit(static_cast<uint32_t>(server_.options.max_header_bytes));
    parser.body_limit(static_cast<uint64_t>(server_.options.max_body_bytes));
    lowest().expires_after(server_.options.idle_timeout);
    idle_ = true;
    co_await http::async_read_header(stream_, buffer_, parser,
                                     net::redirect_error(net::use_awaitable, error));
    idle_ = false;
    if (error) {
      const int status = error == http::error::header_limit ? 431
                         : error == http::error::body_limit ? 413
                                                            : 400;
      const bool from_parser = error.category() == http::make_error_code(http::error{}).category();
      if (from_parser && error != http::error::end_of_stream &&
          error != http::error::partial_message)
        co_await refuse(status, "the request's header cannot be read: " + error.message());
      co_return false;
    }

    HttpRequest request;
    const auto& head = parser.get();
    const auto text = [&](auto view) { return std::string(view.data(), view.size()); };
    request.method = text(head.method_string());
    request.path = text(head.target().substr(0, head.target().find('?')));
    request.authorization = text(head[http::field::authorization]);
    request.fetch_site = text(head["Sec-Fetch-Site"]);
    request.peer = peer_;
    if (std::distance(head.begin(), head.end()) > server_.options.max_header_fields) {
      co_await refuse(431, "the request has too many header fields");
      co_return false;
    }
    if (auto response = server_.handlers.admit(request)) {
      co_await respond_and_close(std::move(*response), request.method != "HEAD");
      co_return false;
    }

    int64_t reserved = 0;
    if (!parser.is_done()) {
      const auto length = parser.content_length();
      reserved = length ? static_cast<int64_t>(*length) : server_.options.max_body_bytes;
      if (server_.bodies_bytes + reserved > server_.options.max_bodies_bytes) {
        co_await refuse(503, "too many large requests at once; try again later");
        co_return false;
      }
      server_.bodies_bytes += reserved;
      lowest().expires_after(server_.options.body_timeout);
      if (beast::iequals(head[http::field::expect], "100-continue"))
        co_await net::async_write(stream_, net::buffer("HTTP/1.1 100 Continue\r\n\r\n", 25),
                                  net::redirect_error(net::use_awaitable, error));
      co_await http::async_read(stream_, buffer_, parser,
                                net::redirect_error(net::use_awaitable, error));
    }
    if (error) {
      server_.bodies_bytes -= reserved;
      if (error == http::error::body_limit)
        co_await refuse(413, fmt::format("the request's body is larger than {} bytes",
                                         server_.options.max_body_bytes));
      else if (error == beast::error::timeout)
        co_await refuse(408, "the request's body did not come in time");
      else if (error.category() == http::make_error_code(http::error{}).category() &&
               error != http::error::partial_message)
        co_await refuse(400, "the request's body cannot be read: " + error.message());
      co_return false;
    }
    const bool keep_alive = head.keep_alive() && !server_.draining;
    const auto reply = std::make_shared<Reply>(server_, this->weak_from_this(), keep_alive,
                                               head.version() >= 11, request.method != "HEAD");
    request.body = std::move(parser.get().body());
    net::post(server_.workers, [&server = server_, reply, moved = std::move(request)]() mutable {
      try {
        server.handlers.handle(std::move(moved), reply);
      } catch (const std::exception& failure) {
        reply->send(server.handlers.refuse(500, failure.what()));
      }
    });
    const bool sent = co_await send_reply(reply);
    server_.bodies_bytes -= reserved;
    co_return sent && reply->keep_alive();
  }

  // Sends what the reply holds until its end; false where the client has left.
  net::awaitable<bool> send_reply(std::shared_ptr<Reply> reply) {
    gone_ = false;
    answering_ = true;
    watch_client();
    error_code error;
    bool last = false;
    while (!last && !gone_) {
      const std::string bytes = reply->take(last);
      if (!bytes.empty()) {
        lowest().expires_after(server_.options.write_timeout);
        co_await net::async_write(stream_, net::buffer(bytes),
                                  net::redirect_error(net::use_awaitable, error));
        if (error || reply->too_slow()) gone_ = true;
        continue;
      }
      if (last) break;
      lowest().expires_never();
      wake_.expires_at(net::steady_timer::time_point::max());
      co_await wake_.async_wait(net::redirect_error(net::use_awaitable, error));
      if (!lowest().socket().is_open()) gone_ = true;
    }
    answering_ = false;
    watch_.cancel();
    error_code ignored;
    if (lowest().socket().is_open()) lowest().socket().cancel(ignored);
    if (gone_) reply->client_gone();
    co_return !gone_;
  }

  // Notices that the client closes while its answer is being made.
  void watch_client() {
    lowest().socket().async_wait(tcp::socket::wait_read,
                                 [self = this->shared_from_this()](const error_code& error) {
                                   if (!error && self->answering_) self->check_client();
                                 });
  }
  void check_client() {
    if (!answering_ || !lowest().socket().is_open()) return;
    if (has_left(lowest().socket().native_handle())) {
      gone_ = true;
      wake();
      return;
    }
    watch_.expires_after(kGoneInterval);
    watch_.async_wait([self = this->shared_from_this()](const error_code& error) {
      if (!error) self->check_client();
    });
  }

  net::awaitable<void> refuse(int status, std::string message) {
    co_await respond_and_close(server_.handlers.refuse(status, std::move(message)), true);
  }

  // The client may still be sending: it is given a moment to read the response.
  net::awaitable<void> respond_and_close(HttpResponse response, bool body_wanted) {
    const auto reply =
        std::make_shared<Reply>(server_, std::weak_ptr<Connection>(), false, true, body_wanted);
    reply->send(std::move(response));
    bool last;
    const std::string bytes = reply->take(last);
    error_code error;
    lowest().expires_after(server_.options.write_timeout);
    co_await net::async_write(stream_, net::buffer(bytes),
                              net::redirect_error(net::use_awaitable, error));
    if (error) co_return;
    if constexpr (!kTls) lowest().socket().shutdown(tcp::socket::shutdown_send, error);
    lowest().expires_after(std::chrono::seconds(1));
    std::array<char, 4096> rest;
    for (int reads = 0; reads < 4096 && !error; ++reads)
      co_await stream_.async_read_some(net::buffer(rest),
                                       net::redirect_error(net::use_awaitable, error));
  }

  Impl& server_;
  Stream stream_;
  beast::flat_buffer buffer_;
  net::steady_timer wake_, watch_;
  std::string peer_;
  bool idle_ = false, answering_ = false, gone_ = false;
};

net::awaitable<void> HttpServer::Impl::accept() {
  error_code error;
  while (acceptor.is_open()) {
    tcp::socket socket(io);
    co_await acceptor.async_accept(socket, net::redirect_error(net::use_awaitable, error));
    if (error) {
      if (!acceptor.is_open()) co_return;
      // Out of descriptors, mostly: others will be freed.
      net::steady_timer pause(io, std::chrono::milliseconds(50));
      co_await pause.async_wait(net::redirect_error(net::use_awaitable, error));
      continue;
    }
    if (static_cast<int64_t>(open.size()) >= options.max_connections) continue;  // closed
    if (tls) {
      using Tls = beast::ssl_stream<beast::tcp_stream>;
      const auto connection =
          std::make_shared<StreamConnection<Tls>>(*this, std::move(socket), *tls);
      net::co_spawn(io, connection->run(), net::detached);
    } else {
      const auto connection =
          std::make_shared<StreamConnection<beast::tcp_stream>>(*this, std::move(socket));
      net::co_spawn(io, connection->run(), net::detached);
    }
  }
}

void HttpServer::Impl::drain() {
  if (draining) return give_up();
  draining = true;
  error_code ignored;
  acceptor.close(ignored);
  handlers.draining();
  for (Connection* connection : std::set<Connection*>(open)) connection->close_if_idle();
  if (open.empty()) {
    signals.cancel();
    return;
  }
  drain_timer.expires_after(options.drain_timeout);
  drain_timer.async_wait([this](const error_code& error) {
    if (!error) give_up();
    if (open.empty()) signals.cancel();
  });
}

void HttpServer::Impl::give_up() {
  handlers.give_up();
  for (Connection* connection : std::set<Connection*>(open)) connection->close();
  signals.cancel();
}

void HttpServer::Impl::run() {
  signals.add(SIGTERM);
  signals.add(SIGINT);
  std::function<void()> wait_signal = [&] {
    signals.async_wait([&](const error_code& error, int) {
      if (error) return;
      drain();
      if (!draining || !open.empty()) wait_signal();
    });
  };
  wait_signal();
  net::co_spawn(io, accept(), net::detached);
  io.run();
  workers.join();
}

HttpServer::HttpServer(const HttpServerOptions& options, Handlers handlers)
    : impl_(std::make_unique<Impl>(options, std::move(handlers))) {}

HttpServer::~HttpServer() {
  impl_->workers.stop();
  impl_->workers.join();
}

int HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

std::string HttpServer::address() const {
  const std::string& host = impl_->options.host;
  const bool v6 = host.find(':') != std::string::npos;
  return fmt::format("{}://{}:{}", impl_->tls ? "https" : "http", v6 ? "[" + host + "]" : host,
                     port());
}

void HttpServer::run() { impl_->run(); }
void HttpServer::post(std::function<void()> task) { net::post(impl_->io, std::move(task)); }
int64_t HttpServer::connections() const { return impl_->open_count; }

}  // namespace whit
