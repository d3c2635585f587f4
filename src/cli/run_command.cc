// whit run MODEL --prompt TEXT: one answer.
#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/generation_options.h"
#include "cli/tuned.h"
#include "runtime/chat.h"

namespace whit::cli {
namespace {

struct RunOptions {
  std::string model, prompt, prompt_file, system;
  bool chat = false, json = false;
  UserGenerationOptions generation;
  MachineOptions machine;
};

std::vector<int32_t> prompt_ids(const RunOptions& user, const std::string& prompt,
                                const Model& model) {
  if (!user.chat) return model.tokenizer().encode(prompt, {.add_special_tokens = true});
  std::vector<ConversationMessage> messages;
  if (!user.system.empty()) messages.push_back({"system", user.system});
  messages.push_back({"user", prompt});
  return chat_prompt_ids(model, messages);
}

Json to_json(const Generation& result, const LoadedModel& loaded, std::span<const int32_t> prompt) {
  return {{"text", result.text},
          {"prompt_token_ids", prompt},
          {"token_ids", result.token_ids},
          {"finish_reason", name(result.finish_reason)},
          {"model", loaded.model.description()},
          {"timings",
           {{"load_s", loaded.load_s},
            {"prefill_s", result.prefill_s},
            {"prefill_tokens_per_s", result.prefill_tokens_per_s()},
            {"decode_s", result.decode_s},
            {"decode_tokens_per_s", result.decode_tokens_per_s()}}},
          {"peak_memory_bytes", peak_memory_bytes()}};
}

int run(const RunOptions& user) {
  if (!user.system.empty() && !user.chat)
    throw Error(ErrorKind::kInvalidArgument,
                "--system is part of a conversation: give --chat with it");
  const std::string prompt =
      user.prompt_file.empty() ? user.prompt : read_text_file(user.prompt_file);
  Machine machine(tuned(user.machine, user.model));
  LoadedModel loaded(user.model,
                     {.max_context = user.generation.ctx_size,
                      .max_logit_rows = 1,
                      .isa = machine.isa,
                      .backend = machine.backend},
                     machine.pool, TokenizerUse::kSoon);
  const std::vector<int32_t> ids = prompt_ids(user, prompt, loaded.model);
  Generator generator(*loaded.executor, loaded.model.tokenizer(), loaded.model.stop_ids(),
                      loaded.kv_format(user.generation.kv_cache_dtype));
  GenerationCallbacks callbacks;
  if (!user.json)
    callbacks.on_text = [](std::string_view text) {
      fmt::print("{}", text);
      std::fflush(stdout);
    };
  const Generation result = generator.generate(ids, user.generation.resolved(), callbacks);
  if (user.json) {
    print_json(to_json(result, loaded, ids));
    return 0;
  }
  fmt::print("\n");
  std::fflush(stdout);
  fmt::print(stderr,
             "[{} prompt tokens at {:.1f}/s, {} tokens at {:.1f}/s; loaded in {:.2f} s; {}]\n",
             result.prompt_tokens, result.prefill_tokens_per_s(), result.token_ids.size(),
             result.decode_tokens_per_s(), loaded.load_s, name(result.finish_reason));
  return 0;
}

}  // namespace

Action add_run(CLI::App& app) {
  auto user = std::make_shared<RunOptions>();
  user->generation.generation.sampling.temperature = 0.8;
  add_model(app, user->model);
  auto* source = app.add_option_group("prompt");
  source->add_option("--prompt", user->prompt, "The text to continue, or with --chat the question");
  source->add_option("--prompt-file", user->prompt_file, "The same from a file");
  source->require_option(1);
  app.add_flag("--chat", user->chat,
               "Ask through the model's chat template; without, the prompt is taken as it is");
  app.add_option("--system", user->system, "With --chat: the system message");
  user->generation.add_to(app);
  user->machine.add_to(app);
  user->machine.add_backend(app);
  add_json(app, user->json);
  app.footer(R"(
The answer is printed as it comes; figures go to stderr. With --json: text, prompt_token_ids, token_ids, finish_reason
("stop" or "length"), timings, peak_memory_bytes.

Examples:
  whit run MODEL --prompt "The capital of France is" --max-tokens 16 --temperature 0
  whit run MODEL --chat --system "Answer in one sentence." --prompt "Why is the sky blue?")");
  return [user] { return run(*user); };
}

}  // namespace whit::cli
