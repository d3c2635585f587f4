#include "checkpoint/gguf_pretokenizer.h"

#include "base/error.h"

namespace whit {
namespace {

// The expressions are data of the model families' published tokenizers.
constexpr std::string_view kGpt2 =
    R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))re";
constexpr std::string_view kLlama3 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kQwen2 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kTekken =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kGpt4o =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

const std::vector<PreTokenizer>& pre_tokenizers() {
  // "default" is what converters wrote before they knew the families: llama.cpp's four passes.
  static const std::vector<PreTokenizer> kTable = {
      {"default",
       {R"re([\p{P}\$\+<=>\^~\|]+)re", kGpt2, R"re(\p{N}+)re", R"re([0-9][0-9][0-9])re"}},
      {"gpt-2", {}},
      {"phi-2", {}},
      {"olmo", {}},
      {"mpt", {}},
      {"mellum", {}},
      {"gigachat", {}},
      {"exaone4", {}},
      {"trillion", {}},
      {"granite-docling", {}},
      {"smollm", {}, Digits::kIndividual},
      {"starcoder", {}, Digits::kIndividual},
      {"refact", {}, Digits::kIndividual},
      {"command-r", {}, Digits::kIndividual},
      {"codeshell", {}, Digits::kIndividual},
      {"minerva-7b", {}, Digits::kIndividual},
      {"llama-bpe", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"llama3", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"llama-v3", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"falcon3", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"pixtral", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"lfm2", {kLlama3}, Digits::kTogether, Lookup::kWholeWordFirst, Normalizer::kNone, true},
      {"smaug-bpe", {kLlama3}},
      {"dbrx", {kLlama3}},
      {"qwen2", {kQwen2}, Digits::kTogether, Lookup::kMerges, Normalizer::kNfc},
      {"megrez", {kQwen2}},
      {"deepseek-r1-qwen", {kQwen2}},
      {"tekken", {kTekken}, Digits::kTogether, Lookup::kWholeWordFirst},
      {"gpt-4o", {kGpt4o}},
  };
  return kTable;
}

}  // namespace

const PreTokenizer& pre_tokenizer_of(const GgufFile& file) {
  const bool qwen = file.string("general.architecture").value_or("") == "qwen2";
  const std::string_view wanted =
      file.string("tokenizer.ggml.pre").value_or(qwen ? "qwen2" : "default");
  for (const PreTokenizer& known : pre_tokenizers())
    if (known.name == wanted) return known;
  throw Error(ErrorKind::kUnsupported,
              "{}: pre-tokenizer \"{}\" (tokenizer.ggml.pre) is not known here; use the model's "
              "Hugging Face directory, "
              "whose tokenizer.json has it",
              file.where(), wanted);
}

Json pre_tokenizer_json(const PreTokenizer& pre) {
  Json steps = Json::array();
  if (pre.digits == Digits::kIndividual)
    steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  for (const std::string_view split : pre.splits)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", split}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", pre.splits.empty()}});
  if (steps.size() == 1) return steps[0];
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

}  // namespace whit
