// whit tokenize MODEL --text TEXT: a text's token ids.
#include <fmt/ranges.h>

#include "cli/command.h"
#include "cli/common.h"

namespace whit::cli {
namespace {

struct TokenizeOptions {
  std::string model, text, file;
  bool add_special_tokens = false, json = false;
};

int tokenize(const TokenizeOptions& user) {
  const Model model = Model::open(user.model);
  const Tokenizer& tokenizer = model.tokenizer();
  const std::vector<int32_t> ids =
      tokenizer.encode(user.file.empty() ? user.text : read_text_file(user.file),
                       {.add_special_tokens = user.add_special_tokens});
  if (user.json) {
    print_json({{"ids", ids}});
    return 0;
  }
  for (const int32_t id : ids)
    fmt::print(
        "{:>7}  {}\n", id,
        Json(tokenizer.token_bytes(id)).dump(-1, ' ', false, Json::error_handler_t::replace));
  return 0;
}

}  // namespace

Action add_tokenize(CLI::App& app) {
  auto user = std::make_shared<TokenizeOptions>();
  add_model(app, user->model);
  auto* source = app.add_option_group("source");
  source->add_option("--text", user->text, "The text");
  source->add_option("--file", user->file, "A file with the text");
  source->require_option(1);
  app.add_flag("--add-special-tokens", user->add_special_tokens,
               "With what the tokenizer puts around a text (beginning of sequence, …)");
  add_json(app, user->json);
  app.footer(R"(
Example:
  whit tokenize MODEL --text "Hello, world" --json)");
  return [user] { return tokenize(*user); };
}

}  // namespace whit::cli
