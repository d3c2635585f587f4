// whit: the program. Chooses the command, runs it, and turns failures into one paragraph on stderr
// and an exit status.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "cli/command.h"

namespace whit::cli {
namespace {

struct Command {
  const char* name;
  const char* summary;
  Action (*add)(CLI::App&);
};

constexpr Command kCommands[] = {
    {"quantize", "Calibrate and quantize a model to an engine directory", add_quantize},
    {"build", "The same with the usual settings, kept in the cache", add_build},
    {"calibrate", "Statistics of calibration data in a file, to keep and to merge", add_calibrate},
    {"run", "Continue a text or answer a question", add_run},
    {"chat", "Talk to a model", add_chat},
    {"serve", "Serve a model over HTTP, as OpenAI does", add_serve},
    {"eval", "Perplexity, and divergence from a reference model", add_eval},
    {"bench", "Prompt and decoding speed", add_bench},
    {"compare", "Quantize in several ways and compare quality, size and speed", add_compare},
    {"inspect", "What a model is made of and how it was quantized", add_inspect},
    {"convert", "Write a model as a Hugging Face directory", add_convert},
    {"tokenize", "Token ids of a text", add_tokenize},
    {"doctor", "Check this machine, and a model on it", add_doctor},
};

constexpr const char* kFooter = R"(
MODEL is a Hugging Face directory, a .gguf file or an engine directory; every command takes any of them.

Examples:
  whit quantize SmolLM2-135M-Instruct.gguf --mode awq --scheme w4a8 -o smol-w4a8
  whit run smol-w4a8 --chat --prompt "Why is the sky blue?"
  whit compare SmolLM2-135M-Instruct.gguf --recipes awq:w4a16,smoothquant:w8a8 -o engines

Exit status: 0 done, 2 wrong usage, 3 unusable data, 4 the system refused (disk full, …), 5 a limit, 130 interrupted.
'whit COMMAND --help' explains a command.)";

int fail(const std::exception& error, int status) {
  fmt::print(stderr, "whit: {}\n", error.what());
  return status;
}

int run(int argc, char** argv) {
  CLI::App app("whit quantizes large language models and runs them.", "whit");
  app.set_version_flag("--version", "whit " WHIT_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  std::vector<std::pair<CLI::App*, Action>> actions;
  for (const Command& command : kCommands) {
    CLI::App* child = app.add_subcommand(command.name, command.summary);
    actions.emplace_back(child, command.add(*child));
  }
  if (argc < 2) {
    fmt::print("{}", app.help());
    return 2;
  }
  const std::string_view first = argv[1];
  if (!first.starts_with('-') &&
      std::none_of(std::begin(kCommands), std::end(kCommands),
                   [&](const Command& each) { return first == each.name; })) {
    fmt::print(stderr, "whit: there is no command '{}'; 'whit --help' lists the commands\n", first);
    return exit_code(ErrorKind::kInvalidArgument);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    const std::vector<CLI::App*> named = app.get_subcommands();
    fmt::print(stderr, "whit: {}\nTry 'whit {}--help'.\n", error.what(),
               named.empty() ? "" : named.front()->get_name() + " ");
    return exit_code(ErrorKind::kInvalidArgument);
  }
  for (const auto& [child, action] : actions)
    if (child->parsed()) return action();
  return 0;
}

}  // namespace
}  // namespace whit::cli

int main(int argc, char** argv) {
  using namespace whit;
  install_interrupt_handler();
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is then an error of write(), like a full disk
  try {
    const int status = cli::run(argc, argv);
    if (std::fflush(stdout) != 0)
      throw Error(ErrorKind::kIo, "cannot write the output: {}", std::strerror(errno));
    return status;
  } catch (const Error& error) {
    return cli::fail(error, exit_code(error.kind()));
  } catch (const std::bad_alloc&) {
    fmt::print(
        stderr,
        "whit: there is not enough memory for this; choose a smaller model, context or batch\n");
    return exit_code(ErrorKind::kResource);
  } catch (const std::exception& error) {
    return cli::fail(error, 1);
  }
}
