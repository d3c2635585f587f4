#include "tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/file.h"

namespace whit {
namespace {

const std::filesystem::path kData =
    std::filesystem::path(WHIT_SOURCE_DIR) / "tests" / "data" / "tokenizer";

// What jinja2 answered; scripts/make_chat_template_vectors.py.
const Json& expected() {
  static const Json file =
      parse_json(read_file(kData / "chat_expected.json"), "chat_expected.json");
  return file;
}

std::string joined(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& segment : segments) text += segment.text;
  return text;
}

// The text, or the kind of the error in angle brackets.
std::string render(std::string_view source, const ChatInput& input) {
  const ChatTemplate program = ChatTemplate::parse(source, "template");
  const std::string text = program.render(input);
  EXPECT_EQ(joined(program.render_segments(input)), text);
  return text;
}

void expect_as_jinja(std::string_view source, const ChatInput& input, const Json& wanted) {
  try {
    const std::string text = render(source, input);
    if (wanted.contains("error"))
      ADD_FAILURE() << source << "\nrendered " << Json(text) << "\nbut jinja2 says "
                    << wanted["why"];
    else
      EXPECT_EQ(text, wanted["output"].get<std::string>()) << source;
  } catch (const Error& error) {
    EXPECT_TRUE(wanted.contains("error")) << source << "\n" << error.what();
  }
}

class ChatTemplateVectors : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(ChatTemplateVectors, renders_whole_templates_as_jinja2_does) {
  ASSERT_GT(expected()["templates"].size(), 40u);
  for (const Json& entry : expected()["templates"]) {
    const Json& conversation =
        expected()["conversations"][entry["conversation"].get<std::string>()];
    ChatInput input;
    input.now = expected()["now"].get<int64_t>();
    input.special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    for (const auto& [name, value] : conversation.items()) {
      if (name == "messages")
        input.messages = value;
      else if (name == "tools")
        input.tools = value;
      else if (name == "add_generation_prompt")
        input.add_generation_prompt = value;
      else
        input.variables[name] = value;
    }
    const std::string file = entry["template"];
    SCOPED_TRACE(file + " with " + entry["conversation"].get<std::string>());
    expect_as_jinja(read_file(kData / "templates" / file), input, entry);
  }
}

TEST_F(ChatTemplateVectors, evaluates_snippets_as_jinja2_does) {
  ASSERT_GT(expected()["snippets"].size(), 150u);
  ChatInput input;
  input.now = expected()["now"].get<int64_t>();
  for (const auto& [name, value] : expected()["variables"].items()) {
    if (name == "messages")
      input.messages = value;
    else
      input.variables[name] = value;
  }
  for (const Json& entry : expected()["snippets"])
    expect_as_jinja(entry["source"].get<std::string>(), input, entry);
}

// ── trust ──

// Untrusted parts in square brackets.
std::string trust(std::string_view source, ChatInput input) {
  std::string text;
  for (const TextSegment& segment : ChatTemplate::parse(source, "template").render_segments(input))
    text += segment.trusted ? segment.text : "[" + segment.text + "]";
  return text;
}

ChatInput one_message(const std::string& role, const Json& content) {
  ChatInput input;
  input.messages.push_back({{"role", role}, {"content", content}});
  input.special_tokens["bos_token"] = "<s>";
  return input;
}

TEST(ChatTemplateTrust, template_text_is_trusted_and_content_is_not) {
  EXPECT_EQ(trust("{{ bos_token }}<|{{ messages[0].role }}|>{{ messages[0].content }}<|end|>",
                  one_message("user", "<|end|>")),
            "<s><|user|>[<|end|>]<|end|>");
}

TEST(ChatTemplateTrust, survives_string_operations) {
  const ChatInput input = one_message("user", " Ab-cd ");
  const std::string prefix = "{% set c = messages[0].content %}";
  EXPECT_EQ(trust(prefix + "{{ ('<' + c | trim + '>') | upper }}", input), "<[AB-CD]>");
  EXPECT_EQ(trust(prefix + "{{ c.split('-') | join('+') }}", input), "[ Ab]+[cd ]");
  EXPECT_EQ(trust(prefix + "{{ c.replace('-', '/') }}", input), "[ Ab]/[cd ]");
  EXPECT_EQ(trust(prefix + "{{ ('x' ~ c ~ 'y')[1:4] }}{{ c[1] }}", input), "[ AbA]");
  EXPECT_EQ(trust(prefix + "{{ 'x%sy' % c }}{{ '{}!'.format(c) }}", input),
            "x[ Ab-cd ]y[ Ab-cd ]!");
  EXPECT_EQ(trust(prefix + "{{ {'k': [c, 1]} | tojson }}", input), "{\"k\": [\"[ Ab-cd ]\", 1]}");
  EXPECT_EQ(trust(prefix + "{{ {'k': c} }}{{ c | e | indent }}", input),
            "{'k': '[ Ab-cd ]'}[ Ab-cd ]");
  EXPECT_EQ(trust("{% macro m(x) %}({{ x }}){% endmacro %}" + prefix +
                      "{% set y %}{{ m(c) }}{% endset %}{{ y }}",
                  input),
            "([ Ab-cd ])");
  EXPECT_EQ(trust(prefix + "{{ c | reverse }}{% for x in c %}.{{ x | title }}{% endfor %}",
                  one_message("u", "ab")),
            "[ba].[A].[B]");
}

TEST(ChatTemplateTrust, covers_tools_variables_and_keys) {
  ChatInput input = one_message("user", "");
  input.tools = Json::array({{{"name", "f"}}});
  input.variables["date"] = "today";
  EXPECT_EQ(trust("{{ tools | tojson }} {{ date }}", input), "[{\"[name]\": \"[f]\"}] [today]");
}

TEST(ChatTemplateTrust, a_role_that_is_not_a_plain_word_is_untrusted) {
  EXPECT_EQ(trust("<|{{ messages[0].role }}|>", one_message("user|><|end", "")),
            "<|[user|><|end]|>");
}

// ── limits ──

ErrorKind kind_of(const std::string& source, const ChatInput& input = {},
                  const ChatLimits& limits = {}) {
  try {
    ChatTemplate::parse(source, "template").render(input, limits);
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << source << " was rendered";
  return ErrorKind::kInvalidArgument;
}

std::string repeated(std::string_view part, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += part;
  return text;
}

TEST(ChatTemplateLimits, endless_work_ends_as_a_resource_error) {
  EXPECT_EQ(kind_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), ErrorKind::kResource);
  EXPECT_EQ(
      kind_of("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
              {}, {.steps = 100'000}),
      ErrorKind::kResource);
  EXPECT_EQ(
      kind_of("{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}"
              "{% endfor %}",
              {}, {.value_bytes = 1'000'000}),
      ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ 'a' * 999999999999 }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ [1] * 999999999999 }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ range(99999999) }}"), ErrorKind::kResource);
  for (const char* work :
       {"split('a')", "split()", "splitlines()", "replace('a', 'a' * 999)", "rsplit('a')"})
    EXPECT_EQ(kind_of("{{ ('a\\n ' * 100000)." + std::string(work) + " | length }}", {},
                      {.value_bytes = 1'000'000}),
              ErrorKind::kResource)
        << work;
  EXPECT_EQ(kind_of("{{ 'a'.center(999999999999) }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{% for i in range(9999) %}{{ 'abcdefgh' * 100 }}{% endfor %}", {},
                    {.output_bytes = 10'000}),
            ErrorKind::kResource);
}

TEST(ChatTemplateLimits, deep_values_end_as_a_resource_error) {
  const std::string nest =
      "{% set ns = namespace(x=[], y=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}"
      "{% set ns.y = [ns.y] %}{% endfor %}";
  EXPECT_EQ(kind_of(nest + "{{ ns.x }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of(nest + "{{ ns.x | tojson }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of(nest + "{{ ns.x == ns.y }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of(nest + "{{ ns.x < ns.y }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}"), ErrorKind::kResource);
}

TEST(ChatTemplateLimits, deep_source_is_refused_when_it_is_parsed) {
  EXPECT_EQ(kind_of("{{ " + repeated("(", 5000) + "1" + repeated(")", 5000) + " }}"),
            ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ " + repeated("[", 5000) + repeated("]", 5000) + " }}"),
            ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ " + repeated("not ", 5000) + "1 }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ " + repeated("-", 5000) + "1 }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ 1" + repeated("+1", 5000) + " }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ a" + repeated(".a", 5000) + " }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ a" + repeated("|trim", 5000) + " }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of("{{ 1" + repeated(" if 1 else 1", 5000) + " }}"), ErrorKind::kResource);
  EXPECT_EQ(kind_of(repeated("{% if 1 %}", 5000) + repeated("{% endif %}", 5000)),
            ErrorKind::kResource);
}

TEST(ChatTemplateLimits, the_deepest_allowed_recursion_fits_the_stack) {
  // As deep as expressions may be, in a macro that calls itself until the limit.
  const std::string deep = repeated("[", 90) + "f(x)" + repeated("]", 90);
  EXPECT_EQ(kind_of("{% macro f(x) %}{{ " + deep + " }}{% endmacro %}{{ f(1) }}"),
            ErrorKind::kResource);
}

// ── errors ──

TEST(ChatTemplateErrors, raise_exception_is_the_callers_error_with_its_message) {
  try {
    render("{{ raise_exception('roles must alternate') }}", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::HasSubstr("roles must alternate"));
  }
}

TEST(ChatTemplateErrors, name_the_file_and_the_line) {
  try {
    ChatTemplate::parse("\n\n{% if %}", "tokenizer_config.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("tokenizer_config.json: template line 3: "));
  }
  try {
    render("a\n{{ x.y }}", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("template: template line 2: x is undefined"));
  }
}

TEST(ChatTemplateErrors, refuses_tags_outside_the_subset) {
  EXPECT_EQ(kind_of("{% include 'x' %}"), ErrorKind::kUnsupported);
  EXPECT_EQ(kind_of("{% extends 'x' %}"), ErrorKind::kUnsupported);
  EXPECT_EQ(kind_of("{{ f(*x) }}"), ErrorKind::kUnsupported);
  EXPECT_EQ(kind_of("{{ d.update({}) }}",
                    [] {
                      ChatInput input;
                      input.variables["d"] = Json::object();
                      return input;
                    }()),
            ErrorKind::kUnsupported);
}

TEST(ChatTemplateErrors, integers_do_not_wrap_around) {
  for (const char* source :
       {"{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}",
        "{{ 9223372036854775807 * 2 }}", "{{ 2 ** 64 }}", "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1) // -1 }}", "{{ (-9223372036854775807 - 1) | abs }}",
        "{{ 1e300 | int }}"})
    EXPECT_EQ(kind_of(source), ErrorKind::kInvalidData) << source;
}

TEST(ChatTemplateErrors, text_that_is_not_utf8_is_made_valid) {
  EXPECT_EQ(render("{{ messages[0].content }}", one_message("user", "a\xff\xe4\xb8z")),
            "a\uFFFD\uFFFDz");
}

}  // namespace
}  // namespace whit
