#include "tokenizer/chat_template.h"

#include <algorithm>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"

namespace whit {
namespace {

bool is_plain_word(std::string_view text) {
  return !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

jinja::Text run(const jinja::Template& program, const ChatInput& input, const ChatLimits& limits) {
  jinja::Limits inner;
  inner.steps = limits.steps;
  inner.value_bytes = limits.value_bytes;
  inner.output_bytes = limits.output_bytes;
  jinja::Interpreter interpreter(program, inner, input.now.value_or(std::time(nullptr)));

  for (const auto& [name, text] : input.special_tokens)
    interpreter.define(name, interpreter.make(jinja::Text(text)));
  if (!input.messages.is_array())
    throw Error(ErrorKind::kInvalidArgument, "messages must be a list");
  const jinja::Value messages = interpreter.from_json(input.messages, true);
  const std::string role_name = "role";
  for (const jinja::Value message : messages.list->items) {
    if (!message.is(jinja::Type::kDict)) continue;
    const jinja::Value key = interpreter.make(role_name);
    const jinja::Value* role = interpreter.find_item(*message.dict, key);
    if (role && role->is_string() && is_plain_word(role->text->view()))
      interpreter.set_item(*message.dict, key, interpreter.make(role->text->view()));
  }
  interpreter.define("messages", messages);
  interpreter.define("tools", interpreter.from_json(input.tools, true));
  interpreter.define("documents", interpreter.from_json(input.documents, true));
  interpreter.define("add_generation_prompt", jinja::Value::of(input.add_generation_prompt));
  if (!input.variables.is_object())
    throw Error(ErrorKind::kInvalidArgument, "template variables must be an object");
  for (const auto& [name, value] : input.variables.items())
    interpreter.define(name, interpreter.from_json(value, true));
  return interpreter.run();
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template program;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

ChatTemplate ChatTemplate::parse(std::string_view source, std::string_view where) {
  return ChatTemplate(std::make_unique<const Impl>(Impl{jinja::parse_template(source, where)}));
}

std::string ChatTemplate::render(const ChatInput& input, const ChatLimits& limits) const {
  return run(impl_->program, input, limits).bytes;
}

std::vector<TextSegment> ChatTemplate::render_segments(const ChatInput& input,
                                                       const ChatLimits& limits) const {
  const jinja::Text text = run(impl_->program, input, limits);
  std::vector<TextSegment> segments;
  size_t begin = 0;
  bool trusted = true;
  const auto cut = [&](size_t end) {
    if (end > begin) segments.push_back({text.bytes.substr(begin, end - begin), trusted});
    begin = end;
    trusted = !trusted;
  };
  for (const size_t flip : text.flips) cut(flip);
  cut(text.size());
  return segments;
}

}  // namespace whit
