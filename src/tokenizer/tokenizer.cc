#include "tokenizer/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

// Ids that the post-processor puts around a text.
struct SpecialAffixes {
  std::vector<int32_t> prefix, suffix;
};

int32_t id_of(const Json& json, std::string_view where) {
  if (!json.is_number_integer())
    throw Error(ErrorKind::kInvalidData, "{}: post_processor: a token id must be an integer",
                where);
  const int64_t id = json.is_number_unsigned() && json.get<uint64_t>() > INT32_MAX
                         ? INT64_MAX
                         : json.get<int64_t>();
  if (id < 0 || id > Vocabulary::kMaxId)
    throw Error(ErrorKind::kInvalidData, "{}: post_processor: token id {} is out of range", where,
                id);
  return static_cast<int32_t>(id);
}

// {"id": name, "ids": [id, …], …} of TemplateProcessing's special_tokens.
std::vector<int32_t> template_token_ids(const Json& json, const std::string& name,
                                        std::string_view where) {
  const auto tokens = json.find("special_tokens");
  if (tokens == json.end() || !tokens->is_object() || !tokens->contains(name))
    throw Error(ErrorKind::kInvalidData,
                "{}: post_processor: \"{}\" is not among its special_tokens", where, name);
  const Json& entry = (*tokens)[name];
  std::vector<int32_t> ids;
  if (!entry.is_object() || !entry.contains("ids") || !entry["ids"].is_array())
    throw Error(ErrorKind::kInvalidData, "{}: post_processor: \"{}\" has no list of ids", where,
                name);
  for (const Json& id : entry["ids"]) ids.push_back(id_of(id, where));
  return ids;
}

void add_post_processor(const Json& json, std::string_view where, SpecialAffixes& affixes) {
  const std::string type = json_get<std::string>(json, "type", where);
  const auto wrap = [&](const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix) {
    affixes.prefix.insert(affixes.prefix.begin(), prefix.begin(), prefix.end());
    affixes.suffix.insert(affixes.suffix.end(), suffix.begin(), suffix.end());
  };
  if (type == "ByteLevel") return;  // changes offsets only
  if (type == "Sequence") {
    if (!json.contains("processors") || !json["processors"].is_array())
      throw Error(ErrorKind::kInvalidData, "{}: post_processor: Sequence needs \"processors\"",
                  where);
    for (const Json& entry : json["processors"]) add_post_processor(entry, where, affixes);
  } else if (type == "TemplateProcessing") {
    if (!json.contains("single") || !json["single"].is_array())
      throw Error(ErrorKind::kInvalidData,
                  "{}: post_processor: TemplateProcessing needs \"single\"", where);
    std::vector<int32_t> prefix, suffix;
    int sequences = 0;
    for (const Json& part : json["single"]) {
      if (part.is_object() && part.contains("Sequence")) {
        ++sequences;
      } else if (part.is_object() && part.contains("SpecialToken")) {
        const auto ids = template_token_ids(
            json, json_get<std::string>(part["SpecialToken"], "id", where), where);
        auto& side = sequences == 0 ? prefix : suffix;
        side.insert(side.end(), ids.begin(), ids.end());
      } else {
        throw Error(ErrorKind::kInvalidData,
                    "{}: post_processor: a part must be a Sequence or a SpecialToken", where);
      }
    }
    if (sequences != 1)
      throw Error(ErrorKind::kUnsupported,
                  "{}: post_processor: a template with {} sequences (one is supported)", where,
                  sequences);
    wrap(prefix, suffix);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    for (const char* key : {"cls", "sep"}) {
      if (!json.contains(key) || !json[key].is_array() || json[key].size() != 2)
        throw Error(ErrorKind::kInvalidData, "{}: post_processor: \"{}\" must be [token, id]",
                    where, key);
    }
    wrap({id_of(json["cls"][1], where)}, {id_of(json["sep"][1], where)});
  } else {
    throw Error(
        ErrorKind::kUnsupported,
        "{}: post-processor \"{}\" is not supported (supported: TemplateProcessing, ByteLevel, "
        "BertProcessing, RobertaProcessing, Sequence)",
        where, type);
  }
}

// The top-level members of the file; vocab and merges stay text.
struct TokenizerFile {
  Json normalizer, pre_tokenizer, post_processor, decoder, added_tokens;
  Json model = Json::object();  // without the two below
  std::string_view vocab, merges;
};

// Files have a dozen. Each member is compared with those before it.
constexpr size_t kMaxModelMembers = 256;

TokenizerFile read_file_members(std::string_view json, std::string_view where) {
  TokenizerFile file;
  JsonScanner scanner(json, where);
  bool has_model = false;
  for (bool more = scanner.begin_object(); more; more = scanner.next_member()) {
    const std::string name(scanner.key());
    if (name == "model" && scanner.peek() == '{') {
      has_model = true;
      for (bool inner = scanner.begin_object(); inner; inner = scanner.next_member()) {
        const std::string member(scanner.key());
        const std::string_view value = scanner.raw_value();
        if (member == "vocab")
          file.vocab = value;
        else if (member == "merges")
          file.merges = value;
        else if (file.model.size() < kMaxModelMembers)
          file.model[member] = parse_json(value, where);
        else
          throw Error(ErrorKind::kInvalidData, "{}: \"model\" has over {} members", where,
                      kMaxModelMembers);
      }
      continue;
    }
    const std::string_view value = scanner.raw_value();
    Json* target = name == "normalizer"       ? &file.normalizer
                   : name == "pre_tokenizer"  ? &file.pre_tokenizer
                   : name == "post_processor" ? &file.post_processor
                   : name == "decoder"        ? &file.decoder
                   : name == "added_tokens"   ? &file.added_tokens
                                              : nullptr;
    if (target) *target = parse_json(value, where);
  }
  scanner.expect_end();
  if (!has_model) throw Error(ErrorKind::kNotFound, "{}: \"model\" is missing", where);
  return file;
}

BpeOptions read_bpe_options(const Json& model, std::string_view where) {
  const std::string type = json_get_or<std::string>(model, "type", "BPE", where);
  if (type != "BPE")
    throw Error(ErrorKind::kUnsupported,
                "{}: tokenizer model \"{}\" is not supported (only BPE is)", where, type);
  if (json_get_or<double>(model, "dropout", 0, where) != 0)
    throw Error(ErrorKind::kUnsupported,
                "{}: BPE dropout makes tokenization random; set it to null", where);
  if (!json_get_or<std::string>(model, "end_of_word_suffix", "", where).empty())
    throw Error(ErrorKind::kUnsupported, "{}: end_of_word_suffix is not supported", where);
  BpeOptions options;
  const std::string unk = json_get_or<std::string>(model, "unk_token", "", where);
  if (!unk.empty()) options.unk_token = unk;
  options.continuing_subword_prefix =
      json_get_or<std::string>(model, "continuing_subword_prefix", "", where);
  options.fuse_unk = json_get_or<bool>(model, "fuse_unk", false, where);
  options.byte_fallback = json_get_or<bool>(model, "byte_fallback", false, where);
  options.ignore_merges = json_get_or<bool>(model, "ignore_merges", false, where);
  return options;
}

Vocabulary read_vocabulary(std::string_view json, std::string_view where) {
  Vocabulary vocabulary;
  // A member takes at least a dozen bytes of JSON.
  vocabulary.reserve(json.size() / 16, json.size() / 2);
  JsonScanner scanner(json, where);
  if (scanner.peek() != '{')
    throw Error(ErrorKind::kInvalidData, "{}: \"vocab\" must be an object of token to id", where);
  std::string token;
  for (bool more = scanner.begin_object(); more; more = scanner.next_member()) {
    token = scanner.key();
    vocabulary.add(token, scanner.integer(), where);
  }
  if (vocabulary.size() == 0)
    throw Error(ErrorKind::kInvalidData, "{}: the vocabulary is empty", where);
  return vocabulary;
}

// Merges are "left right" strings or [left, right] pairs.
void read_merges(std::string_view json, std::string_view where, Bpe& bpe) {
  bpe.reserve_merges(json.size() / 16);
  JsonScanner scanner(json, where);
  std::string merge, left;
  int64_t rank = 0;
  for (bool more = scanner.begin_array(); more; more = scanner.next_element(), ++rank) {
    if (scanner.peek() == '[') {
      if (scanner.begin_array()) {
        left = scanner.string();
        if (scanner.next_element()) {
          bpe.add_merge(left, scanner.string(), where);
          if (!scanner.next_element()) continue;
        }
      }
      throw Error(ErrorKind::kInvalidData, "{}: merge {} is not a pair", where, rank);
    }
    merge = scanner.string();
    const size_t space = merge.find(' ');
    if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos)
      throw Error(ErrorKind::kInvalidData, "{}: merge {} (\"{}\") is not two tokens and a space",
                  where, rank, merge);
    bpe.add_merge(std::string_view(merge).substr(0, space),
                  std::string_view(merge).substr(space + 1), where);
  }
}

}  // namespace

struct Tokenizer::Impl {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  Bpe bpe;
  SpecialAffixes affixes;
  AddedTokenFinder raw_finder, normalized_finder;
  std::vector<bool> is_special;                            // by id; its size is the vocabulary's
  std::vector<std::pair<int32_t, std::string>> added;      // sorted: id → content
  std::vector<std::pair<std::string, int32_t>> added_ids;  // sorted: content → id
  std::vector<std::pair<int32_t, std::string>>
      decoded_spelling;  // sorted: id → what decoding starts from

  void add_tokens(std::vector<AddedToken> tokens, std::string_view where);
  std::string_view token(int32_t id) const;
  std::string_view spelling(int32_t id) const;  // token, or its normalized form
  void encode_marked(MarkedText text, const EncodeOptions& options,
                     std::vector<int32_t>& ids) const;
};

void Tokenizer::Impl::add_tokens(std::vector<AddedToken> tokens, std::string_view where) {
  int64_t limit = bpe.vocabulary().id_limit();
  for (const AddedToken& token : tokens) {
    if (token.id > Vocabulary::kMaxId)
      throw Error(ErrorKind::kInvalidData, "{}: added token \"{}\" has id {}, above {}", where,
                  token.content, token.id, Vocabulary::kMaxId);
    const auto known = bpe.vocabulary().find(token.content);
    if (known && *known != token.id)
      throw Error(ErrorKind::kInvalidData,
                  "{}: added token \"{}\" has id {}, but the vocabulary gives it {}", where,
                  token.content, token.id, *known);
    if (!known && bpe.vocabulary().contains(token.id))
      throw Error(ErrorKind::kInvalidData,
                  "{}: added token \"{}\" and token \"{}\" both have id {}", where, token.content,
                  bpe.vocabulary().token(token.id), token.id);
    limit = std::max<int64_t>(limit, int64_t{token.id} + 1);
    added.emplace_back(token.id, token.content);
    added_ids.emplace_back(token.content, token.id);
  }
  std::sort(added.begin(), added.end());
  std::sort(added_ids.begin(), added_ids.end());
  for (size_t i = 1; i < added.size(); ++i) {
    if (added[i].first == added[i - 1].first)
      throw Error(ErrorKind::kInvalidData, "{}: added tokens \"{}\" and \"{}\" both have id {}",
                  where, added[i - 1].second, added[i].second, added[i].first);
    if (added_ids[i].first == added_ids[i - 1].first)
      throw Error(ErrorKind::kInvalidData, "{}: added token \"{}\" has two ids, {} and {}", where,
                  added_ids[i].first, added_ids[i - 1].second, added_ids[i].second);
  }

  is_special.assign(static_cast<size_t>(limit), false);
  std::vector<AddedToken> raw, normalized;
  std::vector<std::string> raw_patterns, normalized_patterns;
  for (AddedToken& token : tokens) {
    is_special[static_cast<size_t>(token.id)] = token.special;
    if (!token.normalized) {
      raw_patterns.push_back(token.content);
      raw.push_back(std::move(token));
      continue;
    }
    MarkedText pattern{token.content, {}};
    normalizer.apply(pattern);
    if (pattern.text != token.content) decoded_spelling.emplace_back(token.id, pattern.text);
    normalized_patterns.push_back(std::move(pattern.text));
    normalized.push_back(std::move(token));
  }
  std::sort(decoded_spelling.begin(), decoded_spelling.end());
  raw_finder = AddedTokenFinder(std::move(raw), raw_patterns);
  normalized_finder = AddedTokenFinder(std::move(normalized), normalized_patterns);
}

std::string_view Tokenizer::Impl::token(int32_t id) const {
  const auto found =
      std::lower_bound(added.begin(), added.end(), id,
                       [](const auto& entry, int32_t key) { return entry.first < key; });
  if (found != added.end() && found->first == id) return found->second;
  return bpe.vocabulary().token(id);
}

std::string_view Tokenizer::Impl::spelling(int32_t id) const {
  const auto found =
      std::lower_bound(decoded_spelling.begin(), decoded_spelling.end(), id,
                       [](const auto& entry, int32_t key) { return entry.first < key; });
  if (found != decoded_spelling.end() && found->first == id) return found->second;
  return token(id);
}

void Tokenizer::Impl::encode_marked(MarkedText text, const EncodeOptions& options,
                                    std::vector<int32_t>& ids) const {
  if (text.text.size() > Pieces::kMaxBytes / 4)
    throw Error(ErrorKind::kResource, "a text of {} bytes is too long to tokenize (limit {})",
                text.text.size(), Pieces::kMaxBytes / 4);
  const SpecialTokens special =
      options.parse_special ? SpecialTokens::kParse : SpecialTokens::kPlainText;
  Pieces pieces;
  pieces.buffer.reserve(text.text.size());
  std::vector<AddedTokenFinder::Found> raw, inner;
  raw_finder.find(text, special, raw);
  for (const auto& part : raw) {
    if (part.token >= 0) {
      pieces.list.push_back({0, 0, part.token, false});
      continue;
    }
    MarkedText piece;
    piece.text = text.text.substr(part.begin, part.end - part.begin);
    if (!text.marks.empty()) piece.marks = text.marks.substr(part.begin, part.end - part.begin);
    normalizer.apply(piece);
    normalized_finder.find(piece, special, inner);
    if (pieces.buffer.size() + piece.text.size() > Pieces::kMaxBytes)
      throw Error(ErrorKind::kResource,
                  "the normalized text is too long to tokenize (limit {} bytes)",
                  Pieces::kMaxBytes);
    for (const auto& sub : inner) {
      const uint32_t begin = static_cast<uint32_t>(pieces.buffer.size());
      if (sub.token < 0) pieces.buffer.append(piece.text, sub.begin, sub.end - sub.begin);
      pieces.list.push_back({begin, static_cast<uint32_t>(pieces.buffer.size()), sub.token,
                             part.begin == 0 && sub.begin == 0});
    }
  }
  pre_tokenizer.apply(pieces);
  Bpe::Workspace workspace;
  for (const Pieces::Piece& piece : pieces.list) {
    if (piece.token >= 0)
      ids.push_back(piece.token);
    else
      bpe.encode(pieces.text(piece), workspace, ids);
  }
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view where) {
  const TokenizerFile file = read_file_members(json, where);
  auto impl = std::make_unique<Impl>();
  const BpeOptions options = read_bpe_options(file.model, where);
  if (file.vocab.empty() || file.merges.empty())
    throw Error(ErrorKind::kNotFound, "{}: \"model\" needs \"vocab\" and \"merges\"", where);
  impl->bpe = Bpe(read_vocabulary(file.vocab, where), options, where);
  read_merges(file.merges, where, impl->bpe);
  impl->normalizer = Normalizer(file.normalizer, where);
  impl->pre_tokenizer = PreTokenizer(file.pre_tokenizer, where);
  impl->decoder = Decoder(file.decoder, where);
  impl->add_tokens(parse_added_tokens(file.added_tokens, where), where);
  impl->bpe.finish(impl->is_special);
  if (!file.post_processor.is_null()) add_post_processor(file.post_processor, where, impl->affixes);
  for (const auto* ids : {&impl->affixes.prefix, &impl->affixes.suffix})
    for (const int32_t id : *ids)
      if (impl->token(id).empty())
        throw Error(ErrorKind::kInvalidData,
                    "{}: the post_processor adds id {}, which is not in the vocabulary", where, id);
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const TextSegment segment{std::string(text), true};
  return encode(std::span(&segment, 1), options);
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextSegment> segments,
                                       const EncodeOptions& options) const {
  MarkedText text;
  const bool all_trusted = std::all_of(segments.begin(), segments.end(),
                                       [](const TextSegment& segment) { return segment.trusted; });
  for (const TextSegment& segment : segments) {
    const size_t before = text.text.size();
    if (valid_utf8_prefix(segment.text) == segment.text.size())
      text.text += segment.text;
    else
      text.text += lossy_utf8(segment.text);
    if (!all_trusted) text.marks.append(text.text.size() - before, segment.trusted ? '\0' : '\1');
  }
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = impl_->affixes.prefix;
  impl_->encode_marked(std::move(text), options, ids);
  if (options.add_special_tokens)
    ids.insert(ids.end(), impl_->affixes.suffix.begin(), impl_->affixes.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const std::string_view spelling = impl_->spelling(id);
    if (spelling.empty() || (skip_special_tokens && is_special(id))) continue;
    tokens.emplace_back(spelling);
  }
  return impl_->decoder.decode(std::move(tokens));
}

std::string Tokenizer::token_bytes(int32_t id) const {
  return impl_->decoder.token_bytes(impl_->spelling(id), false);
}

std::string_view Tokenizer::token(int32_t id) const { return impl_->token(id); }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto found =
      std::lower_bound(impl_->added_ids.begin(), impl_->added_ids.end(), token,
                       [](const auto& entry, std::string_view key) { return entry.first < key; });
  if (found != impl_->added_ids.end() && found->first == token) return found->second;
  return impl_->bpe.vocabulary().find(token);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < impl_->is_special.size() &&
         impl_->is_special[static_cast<size_t>(id)];
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(impl_->is_special.size()); }

std::string StreamDecoder::push(int32_t id) {
  const Tokenizer::Impl& impl = *tokenizer_->impl_;
  const std::string_view spelling = impl.spelling(id);
  if (spelling.empty() || (skip_special_tokens_ && tokenizer_->is_special(id))) return {};
  if (first_) {
    pending_ = impl.decoder.token_bytes(spelling, true);
  } else {
    pending_ += impl.decoder.separator();
    pending_ += tokenizer_->token_bytes(id);
  }
  first_ = false;
  const Decoder::LeadingStrip& strip = impl.decoder.leading_strip();
  while (!strip_done_ && stripped_ < strip.count && pending_.starts_with(strip.character)) {
    pending_.erase(0, strip.character.size());
    ++stripped_;
  }
  if (!pending_.empty()) strip_done_ = true;
  const size_t held = incomplete_utf8_suffix(pending_);
  const std::string_view certain = std::string_view(pending_).substr(0, pending_.size() - held);
  std::string text = lossy_utf8(certain);
  pending_.erase(0, certain.size());
  return text;
}

std::string StreamDecoder::flush() {
  std::string text = lossy_utf8(pending_);
  *this = StreamDecoder(*tokenizer_, skip_special_tokens_);
  return text;
}

}  // namespace whit
