// The C interface: create an engine, generate with a stream callback, cancel, free.
//
//   whit_engine* engine = NULL;
//   if (whit_engine_create("SmolLM2-135M-Instruct", NULL, &engine) != WHIT_OK)
//     fprintf(stderr, "%s\n", whit_last_error());
//   whit_request* request = NULL;
//   whit_request_create(engine, "The capital of France is", NULL, &request);
//   whit_request_run(request, on_text, NULL);
//   whit_request_free(request);
//   whit_engine_free(engine);
//
// No function throws, exits or prints. Every fallible one returns a whit_status and leaves a
// message for whit_last_error(). Texts are UTF-8 and end with a zero byte. Structs begin with their
// size, so that a program built against an older header keeps working: WHIT_ABI_VERSION grows only
// when something here is removed or changes its meaning, and functions and fields are only added at
// ends.
//
// Threads: an engine may be used by several threads, whose requests run together, and each answers
// as it would alone.
// whit_request_cancel may be called by any thread; everything else on one request by one at a time.

#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WHIT_API __attribute__((visibility("default")))
#else
#define WHIT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define WHIT_ABI_VERSION 1

/* That of the library, to be compared with WHIT_ABI_VERSION. */
WHIT_API uint32_t whit_abi_version(void);
/* "0.1.0" */
WHIT_API const char* whit_version(void);

typedef enum whit_status {
  WHIT_OK = 0,
  WHIT_INVALID_ARGUMENT = 1, /* an argument is out of range */
  WHIT_INVALID_DATA = 2,     /* a file contradicts its format or itself */
  WHIT_NOT_FOUND = 3,        /* a file, tensor or key is not there */
  WHIT_UNSUPPORTED = 4,      /* well-formed, but not something this build can do */
  WHIT_IO = 5,               /* the operating system refused */
  WHIT_INTERRUPTED = 6,      /* ended from outside before it was done */
  WHIT_RESOURCE = 7,         /* memory, or a stated limit */
  WHIT_INTERNAL = 8          /* anything else */
} whit_status;

/* What went wrong in this thread's last call that did not return WHIT_OK; never NULL. Valid until
 * the thread's next call. */
WHIT_API const char* whit_last_error(void);

typedef struct whit_engine whit_engine;
typedef struct whit_request whit_request;

/* How an engine is built and run. whit_engine_options_init sets the defaults; a NULL text means the
 * default too. */
typedef struct whit_engine_options {
  size_t size;              /* of this struct */
  const char* mode;         /* "none", "rtn", "awq", "smoothquant", "gptq", "awq-gptq", "auto" */
  const char* weight_dtype; /* "int4", "int8", "float"; NULL: the mode's usual one */
  const char* activation_dtype; /* "int8", "float"; NULL: the mode's usual one */
  const char* calib;            /* a text file, or "self" */
  const char* engine_dir;       /* NULL: a cache */
  const char* isa;              /* "portable", "avx2", "avx512"; NULL: the best that there is */
  int64_t calib_samples;
  int64_t calib_length;  /* tokens */
  int64_t group_size;    /* of int4 weights: 32, 64 or 128 */
  int64_t max_model_len; /* tokens; 0: the model's */
  int32_t threads;       /* 0: one for each CPU */
  const char* backend;   /* "cpu", or "cuda" for an NVIDIA GPU; NULL: the CPU */
} whit_engine_options;
WHIT_API void whit_engine_options_init(whit_engine_options* options);

/* model: a Hugging Face directory, a .gguf file or an engine directory. options may be NULL. What
 * is missing is calibrated, quantized and built, which can take minutes. */
WHIT_API whit_status whit_engine_create(const char* model, const whit_engine_options* options,
                                        whit_engine** engine);
/* NULL is allowed. All requests must have been freed before. */
WHIT_API void whit_engine_free(whit_engine* engine);

typedef struct whit_sampling_params {
  size_t size;        /* of this struct */
  int64_t max_tokens; /* ≥ 1 */
  double temperature; /* 0: always the likeliest token */
  int64_t top_k;      /* 0: all */
  double top_p;
  double min_p;
  double repetition_penalty;
  double presence_penalty;
  double frequency_penalty;
  uint64_t seed;
  int32_t has_seed;        /* 0: another seed each time */
  int32_t ignore_eos;      /* 1: end-of-sequence tokens do not end the answer */
  const char* const* stop; /* texts that end the answer */
  size_t stop_count;
} whit_sampling_params;
WHIT_API void whit_sampling_params_init(whit_sampling_params* params);

/* prompt: a text, continued as it is. params may be NULL and is copied. */
WHIT_API whit_status whit_request_create(whit_engine* engine, const char* prompt,
                                         const whit_sampling_params* params,
                                         whit_request** request);
/* A user's message, answered through the model's chat template. */
WHIT_API whit_status whit_request_create_chat(whit_engine* engine, const char* message,
                                              const whit_sampling_params* params,
                                              whit_request** request);

/* Called by the thread that runs the request, with text that has become certain (`bytes` long; it
 * need not end with a zero byte) and the tokens chosen since the last call. Another return value
 * than 0 cancels the request. */
typedef int (*whit_stream_callback)(const char* text, size_t bytes, const int32_t* tokens,
                                    size_t token_count, void* user_data);

/* Runs the request to its end. callback may be NULL. A cancelled request is no error. */
WHIT_API whit_status whit_request_run(whit_request* request, whit_stream_callback callback,
                                      void* user_data);
/* From any thread: the request ends after the step that is running, one not yet running at once. */
WHIT_API void whit_request_cancel(whit_request* request);

/* The answer: empty before the request has run. Valid until the request is freed. */
WHIT_API const char* whit_request_text(const whit_request* request);
WHIT_API const int32_t* whit_request_tokens(const whit_request* request, size_t* count);
/* "stop", "length", "cancelled"; "" before the request has run. */
WHIT_API const char* whit_request_finish_reason(const whit_request* request);
/* NULL is allowed. */
WHIT_API void whit_request_free(whit_request* request);

#ifdef __cplusplus
}
#endif
