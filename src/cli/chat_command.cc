// whit chat MODEL: a conversation at the terminal.
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/generation_options.h"
#include "cli/tuned.h"
#include "runtime/chat.h"

namespace whit::cli {
namespace {

struct ChatOptions {
  std::string model, system;
  UserGenerationOptions generation;
  MachineOptions machine;
};

volatile std::sig_atomic_t answer_stopped = 0;

// While it lives, Ctrl-C stops the answer instead of the program.
class StopAnswerOnInterrupt {
 public:
  StopAnswerOnInterrupt() {
    answer_stopped = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { answer_stopped = 1; };
    ::sigaction(SIGINT, &action, &previous_);
  }
  ~StopAnswerOnInterrupt() { ::sigaction(SIGINT, &previous_, nullptr); }
  StopAnswerOnInterrupt(const StopAnswerOnInterrupt&) = delete;
  StopAnswerOnInterrupt& operator=(const StopAnswerOnInterrupt&) = delete;

 private:
  struct sigaction previous_ {};
};

// Lines of standard input, read so that a signal is noticed while waiting.
class LineReader {
 public:
  // Without a value at the end of input. Throws kInterrupted after Ctrl-C.
  std::optional<std::string> next() {
    while (true) {
      const size_t end = pending_.find('\n');
      if (end != std::string::npos) return take(end, 1);
      if (ended_) return pending_.empty() ? std::nullopt : std::optional(take(pending_.size(), 0));
      if (pending_.size() > kMaxLine)
        throw Error(ErrorKind::kResource, "a line of more than {} bytes was given", kMaxLine);
      char buffer[4096];
      const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof(buffer));
      check_interrupt();
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0)
        ended_ = true;
      else
        pending_.append(buffer, static_cast<size_t>(got));
    }
  }

 private:
  static constexpr size_t kMaxLine = 16 << 20;
  std::string take(size_t size, size_t separator) {
    std::string line = pending_.substr(0, size);
    pending_.erase(0, size + separator);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return line;
  }
  std::string pending_;
  bool ended_ = false;
};

class Conversation {
 public:
  Conversation(const ChatOptions& user, LoadedModel& loaded)
      : user_(user),
        loaded_(loaded),
        generator_(*loaded.executor, loaded.model.tokenizer(), loaded.model.stop_ids(),
                   loaded.kv_format(user.generation.kv_cache_dtype)) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!user_.system.empty()) messages_.push_back({"system", user_.system});
  }

  void say(const std::string& text) {
    messages_.push_back({"user", text});
    const StopAnswerOnInterrupt guard;
    try {
      const Generation answer = generator_.generate(
          chat_prompt_ids(loaded_.model, messages_), user_.generation.resolved(),
          {.on_text =
               [](std::string_view piece) {
                 fmt::print("{}", piece);
                 std::fflush(stdout);
               },
           .cancelled = [] { return answer_stopped != 0; }});
      fmt::print("\n");
      std::fflush(stdout);
      fmt::print(stderr, "[{} tokens at {:.1f}/s; context {} of {}; {}]\n", answer.token_ids.size(),
                 answer.decode_tokens_per_s(),
                 answer.prompt_tokens + static_cast<int64_t>(answer.token_ids.size()),
                 loaded_.executor->options().max_context, name(answer.finish_reason));
      messages_.push_back({"assistant", answer.text});
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      messages_.pop_back();
      fmt::print(stderr, "whit: {}\n", error.what());
    }
  }

 private:
  const ChatOptions& user_;
  LoadedModel& loaded_;
  Generator generator_;
  std::vector<ConversationMessage> messages_;
};

int chat(const ChatOptions& user) {
  Machine machine(tuned(user.machine, user.model));
  LoadedModel loaded(user.model,
                     {.max_context = user.generation.ctx_size,
                      .max_logit_rows = 1,
                      .isa = machine.isa,
                      .backend = machine.backend},
                     machine.pool, TokenizerUse::kSoon);
  const ConversationMessage probe{"user", "Hello"};
  chat_prompt_ids(loaded.model,
                  {&probe, 1});  // a model that cannot chat is refused before the first question
  Conversation conversation(user, loaded);
  LineReader lines;
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (terminal)
    fmt::print(stderr, "{}\n/reset begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer\n",
               loaded.model.description());
  while (true) {
    if (terminal) {
      fmt::print(stderr, "\n> ");
      std::fflush(stderr);
    }
    const std::optional<std::string> line = lines.next();
    if (!line || *line == "/exit" || *line == "/quit") break;
    if (line->find_first_not_of(" \t") == std::string::npos) continue;
    if (*line == "/reset")
      conversation.reset();
    else if (line->front() == '/')
      fmt::print(stderr, "whit: {} is not a command; /reset and /exit are\n", *line);
    else
      conversation.say(*line);
  }
  if (terminal) fmt::print(stderr, "\n");
  return 0;
}

}  // namespace

Action add_chat(CLI::App& app) {
  auto user = std::make_shared<ChatOptions>();
  user->generation.generation.sampling.temperature = 0.8;
  user->generation.generation.max_tokens = 1024;
  add_model(app, user->model);
  app.add_option("--system", user->system, "The system message");
  user->generation.add_to(app);
  user->machine.add_to(app);
  user->machine.add_backend(app);
  app.footer(R"(
One line is one message. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.

Example:
  whit chat MODEL --system "You are a patient teacher." --temperature 0.7)");
  return [user] { return chat(*user); };
}

}  // namespace whit::cli
