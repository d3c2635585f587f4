/* Continues a prompt and prints the answer as it comes.
 *
 *   example_c_api MODEL [PROMPT] [MAX_TOKENS]
 *
 * MODEL is a Hugging Face directory, a .gguf file or an engine directory.
 */
#include <stdio.h>
#include <stdlib.h>

#include "whit/whit.h"

static int print_text(const char* text, size_t bytes, const int32_t* tokens, size_t token_count,
                      void* user_data) {
  (void)tokens;
  *(size_t*)user_data += token_count;
  fwrite(text, 1, bytes, stdout);
  fflush(stdout);
  return 0; /* go on */
}

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, whit_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s MODEL [PROMPT] [MAX_TOKENS]\n", argv[0]);
    return 2;
  }
  if (whit_abi_version() != WHIT_ABI_VERSION) {
    fprintf(stderr, "the library has another interface than this program was built for\n");
    return 1;
  }
  whit_engine* engine = NULL;
  if (whit_engine_create(argv[1], NULL, &engine) != WHIT_OK) return fail("create");

  whit_sampling_params params;
  whit_sampling_params_init(&params);
  params.temperature = 0;
  params.max_tokens = argc > 3 ? atol(argv[3]) : 16;

  int status = 1;
  size_t streamed = 0, total = 0;
  whit_request* request = NULL;
  if (whit_request_create(engine, argc > 2 ? argv[2] : "The capital of France is", &params,
                          &request) != WHIT_OK) {
    fail("request");
  } else if (whit_request_run(request, print_text, &streamed) != WHIT_OK) {
    fail("run");
  } else {
    whit_request_tokens(request, &total);
    printf("\n[%zu of %zu tokens streamed, finished by %s]\n", streamed, total,
           whit_request_finish_reason(request));
    status = 0;
  }
  whit_request_free(request);
  whit_engine_free(engine);
  return status;
}
