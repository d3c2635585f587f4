#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "base/error.h"
#include "engine/model.h"
#include "runtime/grammar/compile.h"
#include "runtime/grammar/matcher.h"
#include "text_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

// A tokenizer whose tokens are the bytes.
const std::shared_ptr<const TokenTrie>& byte_tokens() {
  static const std::shared_ptr<const TokenTrie> tokens = [] {
    const TextModel files;
    return std::make_shared<const TokenTrie>(Model::open(files.path()).tokenizer());
  }();
  return tokens;
}

bool matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  GrammarAutomaton& automaton = grammar->automaton();
  const auto config = automaton.after(automaton.start(),
                                      {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return automaton.may_end(config);
}

std::shared_ptr<const Grammar> regex(std::string_view pattern) {
  return compile_regex(pattern, byte_tokens());
}
std::shared_ptr<const Grammar> ebnf(std::string_view text) {
  return compile_ebnf(text, byte_tokens());
}
std::shared_ptr<const Grammar> schema(std::string_view text) {
  return compile_json_schema(Json::parse(text), byte_tokens());
}

template <typename Compile>
std::string message_of(const Compile& compile) {
  try {
    compile();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// A text of the grammar, drawn token by token; short ones are preferred as it grows.
std::string draw(const std::shared_ptr<const Grammar>& grammar, std::mt19937& random) {
  GrammarMatcher matcher(grammar);
  std::string text;
  while (!matcher.must_end() && text.size() < 4000) {
    if (matcher.may_end() && random() % 4 == 0) break;
    std::vector<int32_t> allowed;
    const std::span<const uint64_t> mask = matcher.allowed();
    for (int32_t id = 0; id < byte_tokens()->vocab_size(); ++id)
      if (mask[id / 64] >> (id % 64) & 1) allowed.push_back(id);
    if (allowed.empty()) {
      ADD_FAILURE() << "nothing follows " << text;
      break;
    }
    int32_t id = allowed[random() % allowed.size()];
    // What closes is drawn more often, so that texts end.
    for (const int32_t each : allowed) {
      const char c = static_cast<char>(byte_tokens()->bytes(each)[0]);
      if (std::string_view("\"}],").find(c) != std::string_view::npos && random() % 3 == 0)
        id = each;
    }
    matcher.accept(id);
    text += static_cast<char>(byte_tokens()->bytes(id)[0]);
  }
  return text;
}

TEST(GrammarTest, regular_expressions_match_whole_texts) {
  struct Case {
    const char* pattern;
    std::vector<std::string> yes, no;
  };
  const std::vector<Case> cases = {
      {"abc", {"abc"}, {"ab", "abcd", ""}},
      {"^a|b$", {"a", "b"}, {"ab", ""}},
      {"(ab)*", {"", "ab", "abab"}, {"aba"}},
      {"a+?b{2,3}", {"abb", "aabbb"}, {"ab", "abbbb", "bb"}},
      {"[a-cx]{2}", {"ab", "xx"}, {"ad", "a"}},
      {"[^a-c]", {"d", "é", "日", "😀"}, {"a", "dd", ""}},
      {"[]a-]+", {"]", "a-]"}, {"b"}},
      {"\\d{3}-\\w+", {"123-ab_9"}, {"12-a", "123-"}},
      {"\\.\\$\\{", {".${"}, {"x"}},
      {"(?:a|(?<name>b))c?", {"a", "bc"}, {"ab"}},
      {"[à-ü]x", {"éx"}, {"ex"}},
      {"\\u00e9|\\x41", {"é", "A"}, {"e"}},
      {".", {"a", "é", "😀"}, {"\n", "", "ab"}},
      {"(|a)b", {"b", "ab"}, {"aab"}},
      {"\\s\\S", {" x", "\tx"}, {"x "}},
      {"a{0}b", {"b"}, {"ab"}},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.pattern);
    const auto grammar = regex(each.pattern);
    for (const std::string& text : each.yes) EXPECT_TRUE(matches(grammar, text)) << text;
    for (const std::string& text : each.no) EXPECT_FALSE(matches(grammar, text)) << text;
  }
}

TEST(GrammarTest, what_regular_expressions_cannot_say_is_refused) {
  for (const char* pattern :
       {"(",   ")",     "a)",          "(a",     "[a",     "a{2",    "a{3,2}", "a{2001}", "*a",
        "a**", "a++",   "(?=a)",       "(?!a)",  "(?<=a)", "(a)\\1", "\\b",    "a^b",     "a$b",
        "\\",  "[b-a]", "[[:alpha:]]", "\\p{L}", "(?i)a",  "\xff",   "\\xg1"})
    EXPECT_NE(message_of([&] { regex(pattern); }), "no error") << pattern;
  const std::string deep(60000, '(');
  EXPECT_THAT(message_of([&] { regex(deep); }), HasSubstr("nested"));
  EXPECT_THAT(message_of([&] { regex("((((a{1000}){1000}){1000}){1000})"); }),
              HasSubstr("smaller"));
  EXPECT_THAT(message_of([&] { regex("(((){2000}){2000}){2000}"); }), HasSubstr("repeats"));
}

TEST(GrammarTest, ambiguous_expressions_cost_bounded_time) {
  const auto start = std::chrono::steady_clock::now();
  std::mt19937 random(1);
  for (const char* pattern :
       {"(a|b)*a(a|b){400}", "(a*)*b", "((a?){50}){20}", "(.*a){60}", "(a|aa|aaa)*{0,1}x"}) {
    try {
      draw(regex(pattern), random);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kResource ||
                  error.kind() == ErrorKind::kInvalidArgument);
    }
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(GrammarTest, ebnf_describes_nested_texts) {
  const auto grammar = ebnf(R"EBNF(
    # sums of numbers in brackets
    root ::= sum
    sum  ::= term (" + " term)*
    term ::= [0-9]+ | "(" sum ")" |
             ("\x41"
              "\n")  )EBNF");
  EXPECT_TRUE(matches(grammar, "1 + (2 + (33)) + 4"));
  EXPECT_TRUE(matches(grammar, "A\n"));
  EXPECT_FALSE(matches(grammar, "1 + (2 + 3"));
  EXPECT_FALSE(matches(grammar, "1+2"));
  EXPECT_TRUE(matches(ebnf("root ::= \"a\"{2,3} b?\nb ::= [^x]"), "aaay"));
  EXPECT_THAT(message_of([] { ebnf("root ::= root \"a\" | \"b\""); }),
              HasSubstr("begins with itself"));
  EXPECT_THAT(message_of([] { ebnf("root ::= a\na ::= \"x\"? root | \"y\""); }),
              HasSubstr("begins with itself"));
  EXPECT_THAT(message_of([] { ebnf("root ::= \"(\" root \")\""); }), HasSubstr("no text"));
  EXPECT_THAT(message_of([] { ebnf("root ::= b"); }), HasSubstr("\"b\" is not defined"));
  EXPECT_THAT(message_of([] { ebnf("a ::= \"b\""); }), HasSubstr("no rule \"root\""));
  for (const char* text :
       {"", "root", "root ::= (", "root ::= \"a", "root ::= [a", "root ::= \"a\"{9",
        "root ::= \"a\"\nroot ::= \"b\"", "root ::= \"a\" )"})
    EXPECT_NE(message_of([&] { ebnf(text); }), "no error") << text;
  EXPECT_THAT(message_of([] { ebnf("root ::= " + std::string(60000, '(')); }), HasSubstr("nested"));
}

TEST(GrammarTest, a_json_object_is_any_json_object) {
  const auto grammar = compile_json_schema(Json(), byte_tokens());
  for (const char* text : {"{}", R"({"a": 1})", R"({"a":[1, -2.5e3,{"b":null}], "c" : 1})",
                           R"({"a": "\" \\ \u0001 é"})", "{\n  \"a\": true\n}"})
    EXPECT_EQ(matches(grammar, text), std::string_view(text).find(" :") == std::string_view::npos)
        << text;
  for (const char* text : {"", "[]", "{", "{\"a\"}", "{\"a\":01}", "{\"a\":1,}", "{'a':1}",
                           "{\"a\": \"\n\"}", "{\"a\": \"\\x\"}", "{\"a\": \"\\ud800\"}"})
    EXPECT_FALSE(matches(grammar, text)) << text;
  std::mt19937 random(7);
  for (int i = 0; i < 60; ++i) {
    const std::string text = draw(grammar, random);
    if (text.size() < 4000) {
      EXPECT_TRUE(Json::accept(text)) << text;
    }
  }
}

TEST(GrammarTest, json_schemas_are_kept_to) {
  struct Case {
    const char* schema;
    std::vector<std::string> yes, no;
  };
  const std::vector<Case> cases = {
      {R"({"type":"integer"})", {"0", "-12", "123456789012345"}, {"01", "1.0", "", "-"}},
      {R"({"type":"integer","minimum":-12,"maximum":105})",
       {"-12", "-9", "-1", "0", "7", "99", "100", "105"},
       {"-13", "106", "-20", "200", "-0"}},
      {R"({"type":"integer","exclusiveMinimum":0,"exclusiveMaximum":3})", {"1", "2"}, {"0", "3"}},
      {R"({"type":"number","minimum":0,"maximum":1})",
       {"0", "1", "0.5", "0.001"},
       {"1.5", "-0.5", "2", "1.01"}},
      {R"({"type":"number","exclusiveMinimum":-1,"exclusiveMaximum":0.5})",
       {"0", "-0.5"},
       {"-1", "0.7", "-1.5", "1"}},
      {R"({"enum":["a",1,null,{"x":[1]}]})",
       {"\"a\"", "1", "null", R"({"x":[1]})"},
       {"\"b\"", "a"}},
      {R"({"const":"x y"})", {"\"x y\""}, {"\"x\""}},
      {R"({"type":["string","null"]})", {"\"é\"", "null"}, {"1"}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {"\"ab\"", "\"é日\"", "\"\\n\\\"a\""},
       {"\"a\"", "\"abcd\""}},
      {R"({"type":"string","pattern":"^[a-z]+\"$"})", {"\"ab\\\"\""}, {"\"ab\"", "\"ab\"\""}},
      {R"({"type":"string","pattern":"b+"})", {"\"abc\"", "\"b\""}, {"\"ac\"", "\"\""}},
      {R"({"type":"string","format":"date"})", {"\"2026-11-24\""}, {"\"2026-13-01\"", "\"x\""}},
      {R"({"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":2})",
       {"[true]", "[true, false]"},
       {"[]", "[true,true,true]", "[1]"}},
      {R"({"type":"array","prefixItems":[{"const":1},{"const":2}],"items":false})",
       {"[1, 2]"},
       {"[1,2,3]", "[2,1]"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{}},
           "required":["b"]})",
       {R"({"b": "x"})", R"({"a": 1, "b": "x"})", R"({"a":1,"b":"x","c":[1]})",
        R"({"b":"x","c":2})"},
       {"{}", R"({"a": 1})", R"({"b":"x","a":1})", R"({"b":1})", R"({"b":"x",})", R"({,"b":"x"})"}},
      {R"({"type":"object","additionalProperties":{"type":"integer"}})",
       {"{}", R"({"x":1, "y":2})"},
       {R"({"x":"1"})"}},
      {R"({"type":"object","additionalProperties":false})", {"{}"}, {R"({"x":1})"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"null"}],"default":null})", {"1", "null"}, {"true"}},
      {R"({"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},
                    {"type":"object","properties":{"k":{"const":"b"}},"required":["k"]}]})",
       {R"({"k":"a"})", R"({"k":"b"})"},
       {R"({"k":"c"})"}},
      {R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{
           "left":{"anyOf":[{"$ref":"#/$defs/tree"},{"type":"null"}]}},"required":["left"]}}})",
       {R"({"left":{"left":null}})"},
       {R"({"left":1})", R"({"left":{"left":null})"}},
      {"true", {"1", "[{}]"}, {"x"}},
  };
  std::mt19937 random(3);
  for (const Case& each : cases) {
    SCOPED_TRACE(each.schema);
    const auto grammar = schema(each.schema);
    for (const std::string& text : each.yes) EXPECT_TRUE(matches(grammar, text)) << text;
    for (const std::string& text : each.no) EXPECT_FALSE(matches(grammar, text)) << text;
    for (int i = 0; i < 10; ++i) {
      const std::string text = draw(grammar, random);
      if (text.size() < 4000) {
        EXPECT_TRUE(Json::accept(text)) << text;
      }
    }
  }
}

TEST(GrammarTest, schemas_that_are_impossible_or_not_understood_are_refused_by_name) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type":"float"})", "type"},
      {R"({"not":{}})", "not"},
      {R"({"type":"string","contentEncoding":"x"})", "contentEncoding"},
      {R"({"type":"string","format":"email"})", "email"},
      {R"({"type":"integer","multipleOf":3})", "multipleOf"},
      {R"({"type":"array","uniqueItems":true})", "uniqueItems"},
      {R"({"type":"object","properties":{"a":{"if":{}}}})", "if"},
      {R"({"enum":[]})", "no text"},
      {R"({"type":"integer","minimum":5,"maximum":4})", "no text"},
      {R"({"type":"array","minItems":3,"maxItems":2})", "no text"},
      {R"({"type":"object","required":["a"],"additionalProperties":false})", "no text"},
      {R"({"type":"string","enum":[1]})", "no text"},
      {"false", "no text"},
      {R"({"$ref":"#/nowhere"})", "nothing"},
      {R"({"$ref":"http://x"})", "itself"},
      {R"({"$ref":"#"})", "no text"},
      {R"({"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},{"type":"null"}]}},"$ref":"#/$defs/a"})",
       "begins with itself"},
      {R"({"$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"},"minItems":1}},"$ref":"#/$defs/a"})",
       "no text"},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", "both hold"},
      {R"({"allOf":[{"type":"integer"},{"minimum":1}]})", "allOf"},
      {R"({"type":"string","maxLength":1e9})", "maxLength"},
      {R"({"type":"string","minLength":-1})", "minLength"},
      {R"({"type":"string","pattern":"("})", "not closed"},
      {R"({"properties":[]})", "properties"},
      {"5", "schema"},
  };
  for (const auto& [text, word] : cases)
    EXPECT_THAT(message_of([&] { schema(text); }), HasSubstr(word)) << text;
}

TEST(GrammarTest, an_automaton_never_leads_into_a_dead_end) {
  std::mt19937 random(11);
  for (const char* pattern : {"(ab|a[^b])*c", "[à-üa]{2,5}(x|😀)", "(a|b)*(aa|bb)\\d?"}) {
    const auto grammar = regex(pattern);
    for (int i = 0; i < 50; ++i) draw(grammar, random);
  }
  GrammarMatcher matcher(regex("ab"));
  EXPECT_FALSE(matcher.may_end());
  EXPECT_THROW(matcher.accept(TextModel::kFirstByte + 'b'), Error);
}

TEST(GrammarTest, a_tool_call_names_one_of_the_tools) {
  const auto grammar = compile_tool_call(
      {{"add",
        Json::parse(R"({"type":"object","properties":{"x":{"type":"integer"}},"required":["x"]})")},
       {"stop", Json()}},
      byte_tokens());
  EXPECT_TRUE(matches(grammar,
                      "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": 3}}\n</tool_call>"));
  EXPECT_TRUE(
      matches(grammar, "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(
      matches(grammar, "<tool_call>\n{\"name\": \"go\", \"arguments\": {}}\n</tool_call>"));
}

TEST(GrammarTest, the_same_source_is_compiled_once) {
  GrammarCache cache;
  int compiled = 0;
  const auto compile = [&] {
    ++compiled;
    return regex("a+");
  };
  const auto first = cache.get("a", compile), second = cache.get("a", compile);
  EXPECT_EQ(first, second);
  for (int i = 0; i < 40; ++i) cache.get(std::to_string(i), compile);
  cache.get("a", compile);
  EXPECT_EQ(compiled, 1 + 40 + 1);
}

// Long answers to ever new grammars: each of them grows while it is followed, all of them are kept
// for a while.
TEST(GrammarTest, what_the_cache_remembers_is_bounded) {
  GrammarCache cache;
  int64_t followed = 0;
  for (int i = 0; i < 40; ++i) {
    const auto grammar = cache.get(std::to_string(i), [&] {
      return regex("<" + std::to_string(i) + "([a-z]{1500}|[a-y]{1500})>");
    });
    GrammarMatcher matcher(grammar);
    const std::string text = "<" + std::to_string(i) + std::string(1500, 'm');
    for (const char byte : text) {
      matcher.allowed();
      matcher.accept(TextModel::kFirstByte + static_cast<uint8_t>(byte));
    }
    followed += grammar->automaton().bytes();
    EXPECT_LE(cache.bytes(), (int64_t{32} << 20) + grammar->automaton().bytes());
  }
  EXPECT_GT(followed, int64_t{64} << 20);
}

}  // namespace
}  // namespace whit
