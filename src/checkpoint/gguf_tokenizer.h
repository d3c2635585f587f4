// The tokenizer of a GGUF file as Hugging Face's files.
#pragma once

#include <string>

#include "base/json.h"
#include "checkpoint/gguf.h"

namespace whit {

// tokenizer.json. Byte-level BPE ("gpt2") as stored; SentencePiece BPE ("llama") with merges
// derived from the scores. Throws kUnsupported naming the vocabulary model or pre-tokenizer that
// has no equivalent here.
std::string tokenizer_json_from_gguf(const GgufFile& file);

// tokenizer_config.json: special tokens by text, chat_template.
Json tokenizer_config_from_gguf(const GgufFile& file);

}  // namespace whit
