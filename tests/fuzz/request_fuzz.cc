// libFuzzer target: bodies of HTTP requests. The first byte chooses the endpoint. A body is refused
// with an ApiError of a 4xx status, or becomes requests that the engine may be given.
#include <cstdlib>

#include "fuzz/support.h"
#include "runtime/grammar/token_trie.h"
#include "server/api_error.h"
#include "server/api_request.h"

namespace {

using namespace whit;

void check(const ApiRequest& api, const ApiContext& context) {
  if (api.requests.empty() || api.choices < 1 || api.choices > context.limits.max_choices)
    std::abort();
  for (const Request& request : api.requests) {
    if (request.prompt.empty() || std::ssize(request.prompt) >= context.limits.max_context ||
        request.options.max_tokens < 1)
      std::abort();
    for (const int32_t id : request.prompt)
      if (id < 0 || id >= context.model.config().vocab_size) std::abort();
    const SamplerOptions& sampling = request.options.sampling;
    if (!(sampling.temperature >= 0 && sampling.top_p > 0 && sampling.top_p <= 1)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static GrammarCache grammars;
  static const ApiContext context{
      .model = fuzz::tiny_model(),
      .names = {"m"},
      .limits = {.max_context = 512},
      .tokens = std::make_shared<const TokenTrie>(fuzz::tiny_model().tokenizer()),
      .grammars = grammars};
  if (size < 1) return 0;
  try {
    const Json body = parse_body({reinterpret_cast<const char*>(data) + 1, size - 1});
    switch (data[0] % 4) {
      case 0:
        check(parse_completion(body, context), context);
        break;
      case 1:
        check(parse_embedding(body, context), context);
        break;
      case 2:
        chat_ids(body, context);
        break;
      default:
        check(parse_chat(body, context), context);
    }
  } catch (const ApiError& error) {
    if (error.status() < 400 || error.status() > 499) std::abort();
    error.to_json().dump();
  }
  return 0;
}
