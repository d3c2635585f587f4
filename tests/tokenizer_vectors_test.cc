// Token ids against Hugging Face tokenizers, whose answers scripts/make_tokenizer_vectors.py
// recorded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/file.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

const std::filesystem::path kData =
    std::filesystem::path(WHIT_SOURCE_DIR) / "tests" / "data" / "tokenizer";

std::vector<int32_t> ids_of(const Json& json) { return json.get<std::vector<int32_t>>(); }

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(valid_utf8_prefix(part), part.size());
    text += part;
  }
  return text + decoder.flush();
}

// ── small tokenizers of every kind ──

class TokenizerKind : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto path = kData / ("kind_" + std::string(GetParam()) + ".json");
    const Json file = parse_json(read_file(path), path.string());
    tokenizer_.emplace(Tokenizer::from_json(file["tokenizer"].dump(), path.string()));
    cases_ = file["cases"];
    const Json& unk = file["tokenizer"]["model"]["unk_token"];
    if (unk.is_string()) unk_token_ = unk;
  }
  std::optional<Tokenizer> tokenizer_;
  Json cases_;
  std::string unk_token_;
};

TEST_P(TokenizerKind, encodes_as_hugging_face_does) {
  ASSERT_GT(cases_.size(), 50u);
  for (const Json& entry : cases_) {
    const std::string text = entry["text"];
    EXPECT_EQ(tokenizer_->encode(text), ids_of(entry["ids"])) << entry["text"];
    EXPECT_EQ(tokenizer_->encode(text, {.add_special_tokens = true}), ids_of(entry["with_special"]))
        << entry["text"];
    EXPECT_EQ(tokenizer_->encode(text, {.parse_special = false}), ids_of(entry["plain"]))
        << entry["text"];
  }
}

TEST_P(TokenizerKind, decodes_as_hugging_face_does) {
  for (const Json& entry : cases_) {
    const auto ids = ids_of(entry["ids"]);
    EXPECT_EQ(tokenizer_->decode(ids, false), entry["decoded"].get<std::string>()) << entry["text"];
    EXPECT_EQ(tokenizer_->decode(ids, true), entry["skipped"].get<std::string>()) << entry["text"];
  }
}

TEST_P(TokenizerKind, streams_the_text_that_it_decodes) {
  for (const Json& entry : cases_) {
    const auto ids = ids_of(entry["ids"]);
    EXPECT_EQ(stream(*tokenizer_, ids, false), tokenizer_->decode(ids, false)) << entry["text"];
    EXPECT_EQ(stream(*tokenizer_, ids, true), tokenizer_->decode(ids, true)) << entry["text"];
  }
}

TEST_P(TokenizerKind, trusted_segments_encode_as_one_text) {
  for (const Json& entry : cases_) {
    const std::string text = entry["text"];
    const size_t middle = valid_utf8_prefix(std::string_view(text).substr(0, text.size() / 2));
    const std::vector<TextSegment> segments = {{text.substr(0, middle), true},
                                               {text.substr(middle), true}};
    EXPECT_EQ(tokenizer_->encode(segments, {}), ids_of(entry["ids"])) << entry["text"];
  }
}

TEST_P(TokenizerKind, untrusted_text_never_becomes_a_special_token) {
  for (const Json& entry : cases_) {
    const std::string text = entry["text"];
    const std::vector<TextSegment> segments = {{text, false}};
    const auto ids = tokenizer_->encode(segments, {});
    // unk_token may be special; it is what unknown characters become, not a parsed token.
    EXPECT_TRUE(std::none_of(ids.begin(), ids.end(), [&](int32_t id) {
      return tokenizer_->is_special(id) && tokenizer_->token(id) != unk_token_;
    })) << entry["text"];
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerKind,
                         testing::Values("qwen2", "llama3", "llama2", "metaspace", "unknown",
                                         "words", "gpt2"),
                         [](const auto& kind) { return std::string(kind.param); });

// ── SmolLM2's tokenizer ──

class SmolTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    const char* directory = std::getenv("WHIT_SMOL_HF");
    if (!directory)
      GTEST_SKIP() << "WHIT_SMOL_HF is not set (the directory with SmolLM2's tokenizer.json)";
    const auto path = std::filesystem::path(directory) / "tokenizer.json";
    tokenizer_.emplace(Tokenizer::from_json(read_file(path), path.string()));
  }
  std::optional<Tokenizer> tokenizer_;
};

TEST_F(SmolTokenizer, encodes_and_decodes_the_recorded_vectors) {
  const Json file = parse_json(read_file(kData / "smol_vectors.json"), "smol_vectors.json");
  ASSERT_GT(file["vectors"].size(), 80u);
  for (const Json& entry : file["vectors"]) {
    const auto ids = ids_of(entry["ids"]);
    EXPECT_EQ(tokenizer_->encode(entry["text"].get<std::string>()), ids) << entry["text"];
    EXPECT_EQ(tokenizer_->decode(ids, false), entry["decoded"].get<std::string>()) << entry["text"];
    EXPECT_EQ(stream(*tokenizer_, ids, false), entry["decoded"].get<std::string>())
        << entry["text"];
  }
}

// The generator of scripts/make_tokenizer_vectors.py.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

std::string generate(uint64_t index, const Json& source) {
  SplitMix64 random(index * 1000003 + 12345);
  const auto fragment = [&]() -> std::string {
    const Json& pool = source["pools"][random.below(source["pools"].size())];
    return pool[random.below(pool.size())];
  };
  std::string text;
  for (uint64_t parts = 1 + random.below(24); parts > 0; --parts) {
    const uint64_t kind = random.below(16);
    if (kind < 10) {
      text += fragment();
    } else if (kind < 12) {
      const Json& range = source["ranges"][random.below(source["ranges"].size())];
      const uint32_t low = range[0], high = range[1];
      append_utf8(static_cast<char32_t>(low + random.below(high - low + 1)), text);
    } else if (kind < 13) {
      const std::string repeated = fragment();
      for (uint64_t count = 1 + random.below(8); count > 0; --count) text += repeated;
    } else {
      const bool letters = kind < 15;
      for (uint64_t count = 1 + random.below(letters ? 12 : 9); count > 0; --count)
        text += static_cast<char>(letters ? 'a' + random.below(26) : '0' + random.below(10));
    }
  }
  return text;
}

uint32_t fnv1a(const std::vector<int32_t>& ids) {
  uint32_t hash = 2166136261u;
  for (const int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 16777619u;
  return hash;
}

TEST_F(SmolTokenizer, encodes_twelve_thousand_random_strings_as_hugging_face_does) {
  const Json source =
      parse_json(read_file(kData / "random_fragments.json"), "random_fragments.json");
  std::istringstream recorded(read_file(kData / "smol_random.txt"));
  recorded >> std::hex;
  uint32_t wanted = 0;
  uint64_t count = 0, different = 0;
  for (; recorded >> wanted; ++count) {
    const std::string text = generate(count, source);
    const auto ids = tokenizer_->encode(text);
    if (fnv1a(ids) == wanted) continue;
    if (++different > 5) continue;
    ADD_FAILURE() << "string " << count << ", " << Json(text) << ", became " << Json(ids)
                  << "\nHugging Face's ids: scripts/make_tokenizer_vectors.py show $WHIT_SMOL_HF "
                  << count;
  }
  EXPECT_EQ(different, 0u);
  EXPECT_EQ(count, 12000u);
}

TEST_F(SmolTokenizer, streams_the_random_strings_that_it_decodes) {
  const Json source =
      parse_json(read_file(kData / "random_fragments.json"), "random_fragments.json");
  for (uint64_t index = 0; index < 500; ++index) {
    const std::string text = generate(index, source);
    const auto ids = tokenizer_->encode(text);
    EXPECT_EQ(stream(*tokenizer_, ids, false), tokenizer_->decode(ids, false)) << Json(text);
  }
}

// Quadratic work would take minutes here.
TEST_F(SmolTokenizer, a_megabyte_of_one_character_takes_near_linear_time_slow) {
  for (const char* unit : {"a", " ", "\n", "1", "!", "é", "a ", " \n"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto ids = tokenizer_->encode(text);
    EXPECT_EQ(tokenizer_->decode(ids, false), text);
    EXPECT_LE(ids.size(), text.size());
  }
}

}  // namespace
}  // namespace whit
