// Byte-level BPE: GGUF stores vocabulary and merges as Hugging Face has them and names the
// pre-tokenizer's regular expressions by a word (tokenizer.ggml.pre), which kPreTokenizers
// resolves. SentencePiece BPE: GGUF stores pieces and scores; a merge exists for each split of a
// piece into two pieces, and the piece with the highest score merges first. Vocabularies are large,
// so tokenizer.json is written as text, once.
#include "checkpoint/gguf_tokenizer.h"

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "checkpoint/gguf_pretokenizer.h"

namespace whit {
namespace {

// tokenizer.ggml.token_type
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr size_t kMaxPieceBytes = 1024;
// Llama 2 has two merges per piece; far more is an attack on memory.
constexpr size_t kMaxMergesPerPiece = 32;

struct Vocabulary {
  std::vector<std::string_view> tokens;
  std::vector<int64_t> types;
  std::unordered_map<std::string_view, int64_t>
      ids;  // the last of equal tokens, as JSON readers take it
};

// Bytes of the UTF-8 sequence at text[at] (Unicode 15, table 3-7), or 0 where there is none.
size_t utf8_sequence(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return continues(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool overlong = lead == 0xe0 && byte(1) < 0xa0,
               surrogate = lead == 0xed && byte(1) > 0x9f;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool overlong = lead == 0xf0 && byte(1) < 0x90, beyond = lead == 0xf4 && byte(1) > 0x8f;
    return continues(1) && continues(2) && continues(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

void require_utf8(const GgufFile& file, std::string_view text, std::string_view what,
                  size_t index) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_sequence(text, at);
    if (length == 0)
      throw Error(ErrorKind::kInvalidData, "{}: {}[{}] is not valid UTF-8", file.where(), what,
                  index);
    at += length;
  }
}

// Appends valid UTF-8 as a JSON string. Written by hand: the library's route through a value costs
// many times as much, and a vocabulary has 10^5 of these.
void append_quoted(std::string& json, std::string_view text) {
  json += '"';
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      json += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
      continue;
    }
    if (c == '"' || c == '\\') json += '\\';
    json += c;
  }
  json += '"';
}
std::string quoted(std::string_view text) {
  std::string json;
  append_quoted(json, text);
  return json;
}
void append_pair(std::string& json, std::string_view left, std::string_view right) {
  json += json.back() == '[' ? "[" : ",[";
  append_quoted(json, left);
  json += ',';
  append_quoted(json, right);
  json += ']';
}

Vocabulary read_vocabulary(const GgufFile& file) {
  auto tokens = file.strings("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty())
    throw Error(ErrorKind::kNotFound,
                "{}: tokenizer.ggml.tokens is missing; this file has no tokenizer", file.where());
  Vocabulary vocabulary;
  vocabulary.types = file.integers("tokenizer.ggml.token_type")
                         .value_or(std::vector<int64_t>(tokens->size(), kNormal));
  if (vocabulary.types.size() != tokens->size())
    throw Error(ErrorKind::kInvalidData, "{}: {} tokens but {} token types", file.where(),
                tokens->size(), vocabulary.types.size());
  // Converters fill the vocabulary up to the embedding's rows with unused tokens; those are no part
  // of the tokenizer.
  while (!tokens->empty() && vocabulary.types.back() == kUnused) {
    tokens->pop_back();
    vocabulary.types.pop_back();
  }
  vocabulary.tokens = std::move(*tokens);
  vocabulary.ids.reserve(vocabulary.tokens.size());
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    require_utf8(file, vocabulary.tokens[i], "tokenizer.ggml.tokens", i);
    vocabulary.ids[vocabulary.tokens[i]] = static_cast<int64_t>(i);
  }
  return vocabulary;
}

std::optional<int64_t> special_id(const GgufFile& file, const Vocabulary& vocabulary,
                                  std::string_view which) {
  const auto id = file.integer(fmt::format("tokenizer.ggml.{}_token_id", which));
  if (id && (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size())))
    throw Error(ErrorKind::kInvalidData,
                "{}: tokenizer.ggml.{}_token_id = {} is not in the vocabulary of {}", file.where(),
                which, *id, vocabulary.tokens.size());
  return id;
}

// Control tokens are never part of text; user-defined ones are matched in it before BPE. `id` keys
// differ between tokenizer.json and tokenizer_config.json, so only the common fields are made here.
struct AddedToken {
  int64_t id;
  std::string_view content;
  bool special;
};
std::vector<AddedToken> added_tokens(const Vocabulary& vocabulary) {
  std::vector<AddedToken> result;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const int64_t type = vocabulary.types[i];
    if (type == kControl || type == kUnknown || type == kUserDefined)
      result.push_back({static_cast<int64_t>(i), vocabulary.tokens[i], type != kUserDefined});
  }
  return result;
}

std::string added_tokens_json(const Vocabulary& vocabulary) {
  std::string json = "[";
  for (const AddedToken& token : added_tokens(vocabulary)) {
    if (json.size() > 1) json += ",";
    json += fmt::format(
        R"js({{"id":{},"content":{},"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":{}}})js",
        token.id, quoted(token.content), token.special);
  }
  return json + "]";
}

std::string vocabulary_json(const Vocabulary& vocabulary) {
  std::string json = "{";
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string_view token = vocabulary.tokens[i];
    if (vocabulary.ids.at(token) != static_cast<int64_t>(i)) continue;
    if (json.size() > 1) json += ",";
    append_quoted(json, token);
    json += ':';
    json += std::to_string(i);
  }
  return json + "}";
}

// Begin- and end-of-text tokens around the ids, or null.
Json post_processor(const GgufFile& file, const Vocabulary& vocabulary, bool bos_by_default) {
  const bool add_bos = file.boolean("tokenizer.ggml.add_bos_token").value_or(bos_by_default);
  const bool add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  Json special = Json::object();
  const auto item = [&](std::string_view which) {
    const int64_t id = *special_id(file, vocabulary, which);
    const std::string text(vocabulary.tokens[id]);
    special[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    return Json{{"SpecialToken", {{"id", text}, {"type_id", 0}}}};
  };
  Json single = Json::array(), pair = Json::array();
  for (const char* part : {"A", "B"}) {
    const int type_id = part[0] - 'A';
    const Json sequence = {{"Sequence", {{"id", part}, {"type_id", type_id}}}};
    if (add_bos && special_id(file, vocabulary, "bos")) {
      if (type_id == 0) single.push_back(item("bos"));
      pair.push_back(item("bos"));
    }
    if (type_id == 0) single.push_back(sequence);
    pair.push_back(sequence);
    if (add_eos && special_id(file, vocabulary, "eos")) {
      if (type_id == 0) single.push_back(item("eos"));
      pair.push_back(item("eos"));
    }
  }
  if (special.empty()) return nullptr;
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

std::string merges_json(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto merges = file.strings("tokenizer.ggml.merges");
  if (!merges)
    throw Error(ErrorKind::kNotFound,
                "{}: tokenizer.ggml.merges is missing; this BPE tokenizer is incomplete",
                file.where());
  std::string json = "[", joined;
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const size_t space = merge.find(' ');
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = space == merge.npos ? "" : merge.substr(space + 1);
    joined.assign(left).append(right);
    if (left.empty() || right.empty() || right.find(' ') != right.npos ||
        !vocabulary.ids.contains(left) || !vocabulary.ids.contains(right) ||
        !vocabulary.ids.contains(joined))
      throw Error(ErrorKind::kInvalidData, "{}: merge {} is not two tokens whose union is a token",
                  file.where(), i);
    append_pair(json, left, right);
  }
  return json + "]";
}

std::string byte_level_bpe(const GgufFile& file) {
  const Vocabulary vocabulary = read_vocabulary(file);
  const PreTokenizer& pre = pre_tokenizer_of(file);
  const Json normalizer =
      pre.normalizer == Normalizer::kNfc ? Json{{"type", "NFC"}} : Json(nullptr);
  const Json decoder = {{"type", "ByteLevel"},
                        {"add_prefix_space", true},
                        {"trim_offsets", true},
                        {"use_regex", true}};
  return fmt::format(
      R"js({{"version":"1.0","truncation":null,"padding":null,"added_tokens":{},"normalizer":{},"pre_tokenizer":{},)js"
      R"js("post_processor":{},"decoder":{},"model":{{"type":"BPE","dropout":null,"unk_token":null,)js"
      R"js("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,)js"
      R"js("ignore_merges":{},"vocab":{},"merges":{}}}}})js",
      added_tokens_json(vocabulary), normalizer.dump(), pre_tokenizer_json(pre).dump(),
      post_processor(file, vocabulary, pre.adds_bos).dump(), decoder.dump(),
      pre.lookup == Lookup::kWholeWordFirst, vocabulary_json(vocabulary),
      merges_json(file, vocabulary));
}

// Every split of a piece into two pieces is a merge; better pieces merge first, and among the
// splits of one piece the one with longer parts on the left, as Hugging Face's conversion orders
// them.
std::string derived_merges_json(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto scores = file.floats("tokenizer.ggml.scores");
  if (!scores || scores->size() < vocabulary.tokens.size())
    throw Error(ErrorKind::kUnsupported,
                "{}: this SentencePiece vocabulary has no scores, so its merges cannot be rebuilt; "
                "use the model's Hugging "
                "Face directory",
                file.where());
  struct Merge {
    float score;
    int64_t left_characters, right_characters;
    std::string_view left, right;
  };
  const auto is_continuation = [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) == 0x80;
  };
  const auto characters = [&](std::string_view text) {
    return static_cast<int64_t>(text.size()) -
           std::count_if(text.begin(), text.end(), is_continuation);
  };
  const auto mergeable = [&](std::string_view piece) -> const int64_t* {
    const auto found = vocabulary.ids.find(piece);
    return found != vocabulary.ids.end() && vocabulary.types[found->second] == kNormal
               ? &found->second
               : nullptr;
  };
  std::vector<Merge> merges;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string_view piece = vocabulary.tokens[i];
    if (vocabulary.types[i] != kNormal) continue;
    if (piece.size() > kMaxPieceBytes)
      throw Error(ErrorKind::kInvalidData, "{}: token {} is {} bytes long", file.where(), i,
                  piece.size());
    if (!((*scores)[i] <= 0 || (*scores)[i] > 0))
      throw Error(ErrorKind::kInvalidData, "{}: the score of token {} is not a number",
                  file.where(), i);
    const size_t begin = merges.size();
    for (size_t at = 1; at < piece.size(); ++at) {
      if (is_continuation(piece[at])) continue;
      const std::string_view left = piece.substr(0, at), right = piece.substr(at);
      if (mergeable(left) != nullptr && mergeable(right) != nullptr)
        merges.push_back({(*scores)[i], characters(left), characters(right), left, right});
    }
    if (merges.size() > kMaxMergesPerPiece * vocabulary.tokens.size())
      throw Error(ErrorKind::kResource, "{}: the vocabulary has more than {} merges per piece",
                  file.where(), kMaxMergesPerPiece);
    std::sort(merges.begin() + static_cast<int64_t>(begin), merges.end(),
              [&](const Merge& a, const Merge& b) {
                return std::pair(*mergeable(a.left), *mergeable(a.right)) <
                       std::pair(*mergeable(b.left), *mergeable(b.right));
              });
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.score, a.left_characters, a.right_characters) >
           std::tie(b.score, b.left_characters, b.right_characters);
  });
  std::string json = "[";
  for (const Merge& merge : merges) append_pair(json, merge.left, merge.right);
  return json + "]";
}

std::string sentence_piece_bpe(const GgufFile& file) {
  const Vocabulary vocabulary = read_vocabulary(file);
  const bool prefix = file.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  const auto unknown = special_id(file, vocabulary, "unknown");
  const bool bytes =
      std::find(vocabulary.types.begin(), vocabulary.types.end(), kByte) != vocabulary.types.end();
  Json normalizers = Json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
  Json decoders = Json::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  const Json normalizer = {{"type", "Sequence"}, {"normalizers", normalizers}};
  const Json decoder = {{"type", "Sequence"}, {"decoders", decoders}};
  return fmt::format(
      R"js({{"version":"1.0","truncation":null,"padding":null,"added_tokens":{},"normalizer":{},"pre_tokenizer":null,)js"
      R"js("post_processor":{},"decoder":{},"model":{{"type":"BPE","dropout":null,"unk_token":{},)js"
      R"js("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":{},)js"
      R"js("ignore_merges":false,"vocab":{},"merges":{}}}}})js",
      added_tokens_json(vocabulary), normalizer.dump(),
      post_processor(file, vocabulary, true).dump(), decoder.dump(),
      unknown ? quoted(vocabulary.tokens[*unknown]) : "null", bytes, vocabulary_json(vocabulary),
      derived_merges_json(file, vocabulary));
}

}  // namespace

std::string tokenizer_json_from_gguf(const GgufFile& file) {
  const std::string_view model = file.string("tokenizer.ggml.model").value_or("");
  if (model == "gpt2") return byte_level_bpe(file);
  if (model == "llama") return sentence_piece_bpe(file);
  throw Error(ErrorKind::kUnsupported,
              "{}: vocabulary model \"{}\" (tokenizer.ggml.model) is not supported; byte-level BPE "
              "(\"gpt2\") and "
              "SentencePiece BPE (\"llama\") are",
              file.where(), model);
}

Json tokenizer_config_from_gguf(const GgufFile& file) {
  const Vocabulary vocabulary = read_vocabulary(file);
  const bool sentence_piece = file.string("tokenizer.ggml.model").value_or("") == "llama";
  const auto text_of = [&](int64_t id) { return std::string(vocabulary.tokens[id]); };
  Json config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  const std::pair<const char*, const char*> kSpecial[] = {{"bos", "bos_token"},
                                                          {"eos", "eos_token"},
                                                          {"unknown", "unk_token"},
                                                          {"padding", "pad_token"}};
  for (const auto& [which, field] : kSpecial)
    if (const auto id = special_id(file, vocabulary, which)) config[field] = text_of(*id);
  const bool bos_by_default = sentence_piece || pre_tokenizer_of(file).adds_bos;
  config["add_prefix_space"] =
      sentence_piece && file.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  config["add_bos_token"] = file.boolean("tokenizer.ggml.add_bos_token").value_or(bos_by_default);
  config["add_eos_token"] = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  config["clean_up_tokenization_spaces"] = false;
  const std::string_view architecture = file.string("general.architecture").value_or("");
  if (const auto length = file.integer(fmt::format("{}.context_length", architecture)))
    config["model_max_length"] = *length;
  if (const auto chat = file.string("tokenizer.chat_template")) {
    require_utf8(file, *chat, "tokenizer.chat_template", 0);
    config["chat_template"] = std::string(*chat);
  }
  // Appended to the object's vector: assignment by key would search it linearly.
  Json::object_t decoder;
  for (const AddedToken& token : added_tokens(vocabulary))
    decoder.emplace_back(std::to_string(token.id), Json{{"content", text_of(token.id)},
                                                        {"single_word", false},
                                                        {"lstrip", false},
                                                        {"rstrip", false},
                                                        {"normalized", false},
                                                        {"special", token.special}});
  config["added_tokens_decoder"] = std::move(decoder);
  return config;
}

}  // namespace whit
