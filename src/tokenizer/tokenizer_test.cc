#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "base/json.h"
#include "tokenizer/bpe.h"

namespace whit {
namespace {

// A byte-level tokenizer of a few tokens: a b c ab abc Ġ Ġab, the bytes of "é" and "世", and two
// added tokens.
Json small_tokenizer() {
  return Json::parse(R"({
    "added_tokens": [
      {"id": 20, "content": "<|end|>", "special": true, "normalized": false},
      {"id": 21, "content": "<tool>", "special": false, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [20], "tokens": ["<|end|>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5, "Ġab": 6, "Ã": 7, "©": 8,
      "ä": 9, "¸": 10, "ĸ": 11, "<": 12, ">": 13, "|": 14, "e": 15, "n": 16, "d": 17},
      "merges": [["a", "b"], ["ab", "c"], ["Ġ", "ab"]]}})");
}

Tokenizer load(const Json& json) { return Tokenizer::from_json(json.dump(), "tokenizer.json"); }

// The message of the error that loading the changed file gives.
std::string load_error(const std::function<void(Json&)>& change,
                       ErrorKind kind = ErrorKind::kInvalidData) {
  Json json = small_tokenizer();
  change(json);
  try {
    load(json);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_THAT(error.what(), testing::StartsWith("tokenizer.json: "));
    return error.what();
  }
  ADD_FAILURE() << "the file was accepted";
  return "";
}

using Ids = std::vector<int32_t>;

TEST(Tokenizer, merges_by_rank_within_words) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.encode("abcab ab"), (Ids{4, 3, 6}));
  EXPECT_EQ(tokenizer.encode("é世"), (Ids{7, 8, 9, 10, 11}));
  EXPECT_EQ(tokenizer.encode("ab<|end|>c"), (Ids{3, 20, 2}));
  EXPECT_EQ(tokenizer.encode("a", {.add_special_tokens = true}), (Ids{20, 0}));
  EXPECT_EQ(tokenizer.vocab_size(), 22);
}

TEST(Tokenizer, special_tokens_in_text_can_stay_text) {
  const Tokenizer tokenizer = load(small_tokenizer());
  const Ids plain = {12, 14, 15, 16, 17, 14, 13};
  EXPECT_EQ(tokenizer.encode("<|end|>", {.parse_special = false}), plain);
  EXPECT_EQ(tokenizer.encode("<tool>", {.parse_special = false}), (Ids{21}));
}

TEST(Tokenizer, untrusted_segments_make_no_special_tokens_and_cut_nothing) {
  const Tokenizer tokenizer = load(small_tokenizer());
  const Ids plain = {12, 14, 15, 16, 17, 14, 13};
  const auto encode = [&](const std::vector<TextSegment>& segments) {
    return tokenizer.encode(segments, {});
  };
  EXPECT_EQ(encode({{"<|end|>", false}}), plain);
  EXPECT_EQ(encode({{"<|e", true}, {"n", false}, {"d|>", true}}), plain);
  EXPECT_EQ(encode({{"<|e", false}, {"nd|>", true}}), plain);
  EXPECT_EQ(encode({{"<|end|", false}, {"<|end|>", true}}), (Ids{12, 14, 15, 16, 17, 14, 20}));
  EXPECT_EQ(encode({{"<|e", true}, {"nd|>", true}}), (Ids{20}));
  EXPECT_EQ(encode({{"a", true}, {"b", false}, {"c", true}}), (Ids{4}));
  EXPECT_EQ(encode({{"<tool>", false}}),
            (Ids{21}));  // not special: part of the ordinary vocabulary
}

TEST(Tokenizer, normalization_keeps_track_of_trust) {
  Json json = small_tokenizer();
  json["added_tokens"][0]["normalized"] = true;
  json["normalizer"] =
      Json::parse(R"({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
      {"type": "Replace", "pattern": {"String": "x"}, "content": ""}]})");
  const Tokenizer tokenizer = load(json);
  const Ids plain = {12, 14, 15, 16, 17, 14, 13};
  EXPECT_EQ(tokenizer.encode("<|EnxD|>"), (Ids{20}));
  for (const char* text : {"<|END|>", "<|eXnd|>", "\uFF1C|end|>"}) {
    const std::vector<TextSegment> untrusted = {{text, false}};
    EXPECT_EQ(tokenizer.encode(untrusted, {}), plain) << text;
    const std::vector<TextSegment> mixed = {{"ab", false}, {text, true}};
    EXPECT_EQ(tokenizer.encode(mixed, {}), (Ids{3, 20})) << text;
  }
}

TEST(Tokenizer, decoding_passes_over_unknown_and_negative_ids) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.decode(Ids{4, -1, 99, 20, 6}, false), "abc<|end|> ab");
  EXPECT_EQ(tokenizer.decode(Ids{4, INT32_MAX, INT32_MIN, 20, 6}, true), "abc ab");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(7), "\xC3");
  EXPECT_EQ(tokenizer.token_bytes(6), " ab");
  EXPECT_EQ(tokenizer.token(6), "Ġab");
  EXPECT_EQ(tokenizer.token_to_id("<tool>"), 21);
  EXPECT_EQ(tokenizer.token_to_id("nope"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(20));
  EXPECT_FALSE(tokenizer.is_special(21));
  EXPECT_FALSE(tokenizer.is_special(-5));
}

TEST(Tokenizer, a_stream_holds_back_the_bytes_of_unfinished_characters) {
  const Tokenizer tokenizer = load(small_tokenizer());
  StreamDecoder stream(tokenizer, false);
  EXPECT_EQ(stream.push(0), "a");
  EXPECT_EQ(stream.push(9), "");
  EXPECT_EQ(stream.push(10), "");
  EXPECT_EQ(stream.push(11), "世");
  EXPECT_EQ(stream.push(7), "");
  EXPECT_EQ(stream.push(0), "\uFFFDa");  // the character was never finished
  EXPECT_EQ(stream.push(9), "");
  EXPECT_EQ(stream.flush(), "\uFFFD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(Tokenizer, text_that_is_not_utf8_is_read_with_replacement_characters) {
  Json json = small_tokenizer();
  json["model"]["vocab"]["ï"] = 30;
  json["model"]["vocab"]["¿"] = 31;
  json["model"]["vocab"]["½"] = 32;
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(tokenizer.encode("a\xff\xc3z"), tokenizer.encode("a\uFFFD\uFFFDz"));
  EXPECT_EQ(tokenizer.encode("\xff"), (Ids{30, 31, 32}));
}

TEST(Tokenizer, ignore_merges_takes_whole_words_but_no_special_token) {
  Json json = small_tokenizer();
  json["model"]["ignore_merges"] = true;
  json["pre_tokenizer"] = nullptr;
  json["model"]["vocab"]["cab"] = 30;
  json["model"]["vocab"]["<|end|>"] = 20;
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(tokenizer.encode("cab"), (Ids{30}));
  EXPECT_EQ(tokenizer.encode("<|end|>", {.parse_special = false}),
            (Ids{12, 14, 15, 16, 17, 14, 13}));
}

TEST(TokenizerErrors, vocabulary_and_merges_must_agree) {
  using testing::HasSubstr;
  EXPECT_THAT(load_error([](Json& j) {
                j["model"]["merges"].push_back({"a", "zz"});
              }),
              HasSubstr("\"zz\""));
  EXPECT_THAT(load_error([](Json& j) {
                j["model"]["merges"].push_back({"b", "b"});
              }),
              HasSubstr("\"bb\""));
  EXPECT_THAT(load_error([](Json& j) { j["model"]["merges"].push_back("a b c"); }),
              HasSubstr("merge 3"));
  EXPECT_THAT(load_error([](Json& j) { j["model"]["merges"].push_back("ab"); }),
              HasSubstr("merge 3"));
  EXPECT_THAT(load_error([](Json& j) { j["model"]["merges"].push_back({"a"}); }),
              HasSubstr("not a pair"));
  EXPECT_THAT(load_error([](Json& j) {
                j["model"]["merges"].push_back({"a", "b", "c"});
              }),
              HasSubstr("not a pair"));
  load_error([](Json& j) { j["model"]["merges"].push_back(5); });
  load_error([](Json& j) { j["model"]["merges"] = 5; });
  load_error([](Json& j) { j["model"]["vocab"] = Json::object(); });
  load_error([](Json& j) { j["model"]["vocab"] = Json::array({1}); });
}

TEST(TokenizerErrors, ids_must_be_unique_and_in_range) {
  using testing::HasSubstr;
  EXPECT_THAT(load_error([](Json& j) { j["model"]["vocab"]["x"] = 0; }),
              HasSubstr("both have id 0"));
  EXPECT_THAT(load_error([](Json& j) { j["model"]["vocab"]["x"] = -1; }), HasSubstr("id -1"));
  EXPECT_THAT(load_error([](Json& j) { j["model"]["vocab"]["x"] = 99999999999; }),
              HasSubstr("99999999999"));
  load_error([](Json& j) { j["model"]["vocab"]["x"] = 1.5; });
  load_error([](Json& j) { j["model"]["vocab"]["x"] = "1"; });
  EXPECT_THAT(load_error([](Json& j) { j["added_tokens"][0]["id"] = 3; }),
              HasSubstr("both have id 3"));
  EXPECT_THAT(load_error([](Json& j) { j["added_tokens"][0]["id"] = 21; }),
              HasSubstr("both have id 21"));
  EXPECT_THAT(load_error([](Json& j) { j["added_tokens"][0]["content"] = "<tool>"; }),
              HasSubstr("two ids"));
  EXPECT_THAT(load_error([](Json& j) { j["added_tokens"][0]["content"] = "ab"; }),
              HasSubstr("gives it 3"));
  load_error([](Json& j) { j["added_tokens"][0]["id"] = Vocabulary::kMaxId + 1; });
  load_error([](Json& j) { j["added_tokens"][0]["id"] = -1; });
  EXPECT_THAT(load_error([](Json& j) {
                j["post_processor"]["special_tokens"]["<|end|>"]["ids"][0] = 4000;
              }),
              HasSubstr("id 4000"));
}

TEST(TokenizerErrors, a_token_with_two_ids_is_refused) {
  const std::string text = R"({"model": {"vocab": {"a": 0, "b": 1, "a": 2}, "merges": []}})";
  EXPECT_THROW(Tokenizer::from_json(text, "t"), Error);
}

TEST(TokenizerErrors, what_is_not_implemented_is_named) {
  using testing::HasSubstr;
  const auto unsupported = [](const std::function<void(Json&)>& change) {
    return load_error(change, ErrorKind::kUnsupported);
  };
  EXPECT_THAT(unsupported([](Json& j) { j["model"]["type"] = "Unigram"; }), HasSubstr("Unigram"));
  EXPECT_THAT(unsupported([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("end_of_word"));
  EXPECT_THAT(unsupported([](Json& j) { j["model"]["dropout"] = 0.1; }), HasSubstr("dropout"));
  EXPECT_THAT(unsupported([](Json& j) {
                j["normalizer"] = {{"type", "Precompiled"}};
              }),
              HasSubstr("Precompiled"));
  EXPECT_THAT(unsupported([](Json& j) {
                j["pre_tokenizer"] = {{"type", "Magic"}};
              }),
              HasSubstr("Magic"));
  EXPECT_THAT(unsupported([](Json& j) { j["decoder"] = {{"type", "CTC"}}; }), HasSubstr("CTC"));
  EXPECT_THAT(unsupported([](Json& j) { j["post_processor"] = {{"type", "X"}}; }), HasSubstr("X"));
}

TEST(TokenizerErrors, bad_patterns_are_refused_when_the_file_is_loaded) {
  const auto split = [](const Json& pattern) {
    return [pattern](Json& j) { j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", pattern}}; };
  };
  EXPECT_THAT(load_error(split({{"Regex", "(a"}})), testing::HasSubstr("(a"));
  load_error(split({{"Regex", 5}}));
  load_error(split("a"));
  load_error([](Json& j) {
    j["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sideways"}};
  });
}

TEST(TokenizerErrors, a_pattern_that_backtracks_without_bound_ends_as_an_error) {
  Json json = small_tokenizer();
  json["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}};
  const Tokenizer tokenizer = load(json);
  try {
    tokenizer.encode(std::string(60, 'a') + "b");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResource);
  }
}

// Each is compared with those before it.
TEST(TokenizerErrors, a_model_of_very_many_members_is_refused_at_once) {
  std::string text = small_tokenizer().dump();
  std::string members;
  for (int i = 0; i < 200'000; ++i) members += fmt::format("\"{}\":0,", i);
  text.insert(text.find("\"type\":\"BPE\""), members);
  try {
    Tokenizer::from_json(text, "tokenizer.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("members"));
  }
}

TEST(TokenizerErrors, every_truncation_of_the_file_is_refused) {
  const std::string text = small_tokenizer().dump();
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_THROW(Tokenizer::from_json(text.substr(0, size), "t"), Error) << size;
  EXPECT_THROW(Tokenizer::from_json(text + "}", "t"), Error);
}

}  // namespace
}  // namespace whit
