// Texts that are part of the program, so that it works from any directory; their sources are in
// data/.
#pragma once

#include <string_view>

namespace whit::embedded {

// data/calib/prompts.jsonl: one {"prompt": string, "chat": bool} a line; what `--calib self` lets
// the model continue.
std::string_view calib_prompts();

// data/eval/{prose,code,dialogue}.txt joined in this order: the evaluation text where the user
// names none.
std::string_view eval_text();
// … each of them alone, and data/eval/german.txt.
std::string_view eval_prose();
std::string_view eval_code();
std::string_view eval_dialogue();
std::string_view eval_german();

// src/server/web/index.html: the page at / of `whit serve`.
std::string_view chat_page();

}  // namespace whit::embedded
