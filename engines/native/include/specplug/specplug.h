/* specplug: speculative decoding over ONNX Runtime, from C.
 *
 * Open a bundle that `specplug export` wrote, make a decoder, give it token ids, and get the tokens
 * that the Python package gives for the same bundle, options and seed.
 *
 *     specplug_model *model;
 *     specplug_decoder *decoder;
 *     if (specplug_model_open("smol.bundle", NULL, &model) != SPECPLUG_OK ||
 *         specplug_decoder_create(model, NULL, &decoder) != SPECPLUG_OK)
 *       fprintf(stderr, "%s\n", specplug_error_message());
 *
 * Conventions, unless a function says otherwise:
 *
 * Errors. Every function that can fail returns a status. On SPECPLUG_OK its outputs are set; on any
 *   other status they are left alone, and specplug_error_message() of the same thread says what was
 *   wrong, with which value, and what would be right. No C++ exception leaves the library, and
 *   memory that cannot be had is a status (SPECPLUG_ERROR_OUT_OF_MEMORY), too.
 * Arguments. Checked before any work: NULL where something is needed, a count that cannot be, a
 *   number outside its range, NaN, a key that is there twice, text that is not UTF-8. Flags are
 *   int32_t: 0 is no, anything else yes.
 * Ownership. Who creates destroys: models are closed, decoders destroyed, and memory that a
 *   function hands out through a pointer to a pointer is given back to specplug_free(). A handle or
 *   memory that was given back must not be used again, which the library cannot find out. Whatever a
 *   caller passes in is copied if it is needed after the call returns.
 * Threads. A model may be used by any number of threads at once. A decoder runs one generation at a
 *   time, in whichever thread calls; a second call meanwhile is refused (SPECPLUG_ERROR_BUSY).
 *   specplug_decoder_cancel() alone may be called from another thread while a generation runs.
 * Text is UTF-8. Token ids are int64_t, as in ONNX Runtime.
 * Options. A struct of options begins with its size, by which the library tells what the caller
 *   knows of; later versions add fields at the end. Fill it by its _init function, then change
 *   fields. NULL in place of options means the defaults; an _init function leaves NULL alone.
 *   Fields that are set beyond those that the library knows are refused.
 */
#ifndef SPECPLUG_H
#define SPECPLUG_H

#include <stddef.h>
#include <stdint.h>

#if defined(SPECPLUG_STATIC) || !defined(__GNUC__)
#define SPECPLUG_API
#else
#define SPECPLUG_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The binary interface that this header describes. It is raised when a function or a field changes
 * its meaning, not when some are added. */
#define SPECPLUG_ABI_VERSION 1

/* That of the library that is loaded: compare it with SPECPLUG_ABI_VERSION at start. */
SPECPLUG_API int specplug_abi_version(void);

/* The library's release, such as "0.1.0"; static. */
SPECPLUG_API const char *specplug_version(void);

typedef enum specplug_status {
  SPECPLUG_OK = 0,
  SPECPLUG_ERROR_INVALID_ARGUMENT = 1, /* a value outside its range; nothing was done */
  SPECPLUG_ERROR_BUNDLE = 2,           /* missing, damaged, unsafe, or of another version */
  SPECPLUG_ERROR_ENGINE = 3,           /* ONNX Runtime failed */
  SPECPLUG_ERROR_CONTEXT_LIMIT = 4,    /* the prompt leaves no room for a new token */
  SPECPLUG_ERROR_OUT_OF_MEMORY = 5,
  SPECPLUG_ERROR_UNSUPPORTED = 6,      /* Python can do it, this library cannot */
  SPECPLUG_ERROR_BUSY = 7,             /* the decoder runs a generation in another thread */
  SPECPLUG_ERROR_INTERNAL = 8          /* a mistake of ours: please report it */
} specplug_status;

/* What the latest call of this thread that failed has to say; "" if none did. Valid until the
 * thread's next failing call. */
SPECPLUG_API const char *specplug_error_message(void);

/* Give back memory that this library handed out. NULL is allowed. */
SPECPLUG_API void specplug_free(void *memory);

/* --- models -------------------------------------------------------------------------------------
 * An opened bundle: weights, read-only and shared by all decoders over them, tokenizer, costs, and
 * texts of earlier requests for the drafters that look there. */

typedef struct specplug_model specplug_model;

typedef struct specplug_model_options {
  size_t size;
  int32_t threads;   /* worker threads, 0 to 1024; 0: one a physical core */
  int32_t load_draft; /* open the bundle's draft model, too. It shares a thread pool with the target,
                         and ONNX Runtime's only shared pool is the process's: once it is there, other
                         sessions of the process must be made with DisablePerSessionThreads. */
  const char *const *providers; /* ONNX Runtime's execution providers in order of preference, such
                                   as "CUDAExecutionProvider"; none: the CPU. Others than the CPU's
                                   are handed to ONNX Runtime as they are, and have not been tried. */
  size_t provider_count;
  size_t history_tokens; /* of earlier requests that drafters may look at, to 2^30; 0: nothing is
                            kept */
  int32_t allow_narrow;  /* give up the width rule: faster calls of one token, perhaps other text */
} specplug_model_options;

SPECPLUG_API void specplug_model_options_init(specplug_model_options *options);

/* Open a bundle. Everything in it is checked first: manifest, sizes, SHA-256, what graphs refer to.
 *
 * folder: its path. options: may be NULL. model: receives the handle; close it.
 * Errors: BUNDLE, ENGINE, INVALID_ARGUMENT, UNSUPPORTED (a dialect that only Python runs). */
SPECPLUG_API specplug_status specplug_model_open(const char *folder,
                                                 const specplug_model_options *options,
                                                 specplug_model **model);

/* Let go of a model. Decoders over it stay valid: the weights go with the last of them. NULL is
 * allowed. */
SPECPLUG_API void specplug_model_close(specplug_model *model);

typedef struct specplug_model_info {
  size_t size; /* set by the caller to sizeof(specplug_model_info) */
  int64_t vocab_size;
  int64_t context_limit; /* tokens of a sequence, prompt included */
  int32_t min_width;     /* narrower calls are padded to this */
  int32_t has_draft;     /* loaded */
  int32_t has_tokenizer; /* one that this library can run; token ids work without */
  const int64_t *stop_token_ids; /* these pointers live as long as the model */
  size_t stop_token_count;
  const char *chat_template; /* Jinja, as the bundle has it; NULL: none */
} specplug_model_info;

/* What a model is. Never fails on a model that is open. */
SPECPLUG_API specplug_status specplug_model_get_info(const specplug_model *model,
                                                     specplug_model_info *info);

/* --- text ---------------------------------------------------------------------------------------
 * Byte-level BPE (Llama 3, SmolLM2, Qwen2 and their kin) is built in; other kinds of tokenizer.json
 * are refused with UNSUPPORTED, and token ids work all the same. Chat templates are Jinja programs,
 * for which no library is at hand in C++: render them, or the few constant strings that they come to
 * for a known model, in the caller, and encode the result. Special tokens in the text are found. */

/* The token ids of a text.
 *
 * special_tokens: 1 to add what the tokenizer puts around a text, 0 not to (rendered templates).
 * ids, count: receive the ids, which go back to specplug_free().
 * Errors: UNSUPPORTED (see above), INVALID_ARGUMENT (not UTF-8), BUNDLE. */
SPECPLUG_API specplug_status specplug_encode(const specplug_model *model, const char *text,
                                             size_t bytes, int special_tokens, int64_t **ids,
                                             size_t *count);

/* The text of token ids, special tokens left out; it ends with a 0, which bytes does not count.
 * Errors: as specplug_encode(). Ids that no token has are nothing. */
SPECPLUG_API specplug_status specplug_decode(const specplug_model *model, const int64_t *ids,
                                             size_t count, char **text, size_t *bytes);

/* --- decoders -----------------------------------------------------------------------------------
 * A KV cache, a drafter and what it has learnt, over a model. */

typedef struct specplug_decoder specplug_decoder;

enum { SPECPLUG_AUTO = -1 };

typedef struct specplug_decoder_options {
  size_t size;
  const char *drafter; /* "none", "ngram", "suffix", "recycle", "predicted", "draft", "self", or
                          "auto": all that there are, merged. As in Python; static or copied. */
  int32_t draft_tokens; /* 0 to 255 tokens a round, or SPECPLUG_AUTO: as many as pay by measured
                           costs, from tuning.json or else from a second of calls before the
                           model's first answer. With "none": SPECPLUG_AUTO or 0 */
  int32_t inexact_trees; /* draft trees where scores in a tree are not those in a chain, too */
  int32_t prompt_lookup_min; /* of "ngram", and left alone for others: 1 <= min <= max tokens */
  int32_t prompt_lookup_max;
} specplug_decoder_options;

SPECPLUG_API void specplug_decoder_options_init(specplug_decoder_options *options);

/* Make a decoder. options: may be NULL. decoder: receives the handle; destroy it.
 * Errors: INVALID_ARGUMENT, BUNDLE (no draft model), ENGINE. */
SPECPLUG_API specplug_status specplug_decoder_create(specplug_model *model,
                                                     const specplug_decoder_options *options,
                                                     specplug_decoder **decoder);

/* Destroy a decoder that runs no generation. NULL is allowed. */
SPECPLUG_API void specplug_decoder_destroy(specplug_decoder *decoder);

/* --- generations ------------------------------------------------------------------------------ */

/* A run of new tokens: what one round accepted, and the target's own token after it. */
typedef struct specplug_run {
  const int64_t *ids; /* valid during the callback, like text */
  size_t count;       /* at least 1 */
  size_t accepted;    /* how many of them, from the first on, a drafter had proposed */
  const char *text;   /* what they complete, ended by a 0; "" unless text was asked for */
  size_t bytes;
} specplug_run;

/* Called in the generating thread for each run of tokens; none is ever retracted. Return 0 to go
 * on, anything else to cancel. It must not use the decoder, and must not throw or jump out. */
typedef int (*specplug_on_run)(void *user_data, const specplug_run *run);

typedef enum specplug_acceptance {
  SPECPLUG_COUPLED = 0,   /* the text depends on the seed alone */
  SPECPLUG_REJECTION = 1, /* UNSUPPORTED so far, like SPECPLUG_BLOCK */
  SPECPLUG_BLOCK = 2
} specplug_acceptance;

/* As in Python's SamplingParams and GenerationOptions, in their order, with their defaults and
 * their ranges, which docs/INPUTS.md lists. */
typedef struct specplug_generation_options {
  size_t size;
  int64_t max_tokens; /* new tokens, a final stop token included; 256 */

  double temperature; /* 0: the likeliest token */
  int64_t top_k;      /* 0: all */
  double top_p;
  double min_p;
  double typical_p;
  double repetition_penalty;
  double presence_penalty;
  double frequency_penalty;
  const int64_t *bias_tokens; /* logit_bias: tokens and what is added to their logits */
  const double *bias_values;
  size_t bias_count;
  int64_t no_repeat_ngram;
  const int64_t *banned_tokens;
  size_t banned_count;
  const int64_t *forced_positions; /* of the answer, from 0 on, and the tokens that come there */
  const int64_t *forced_tokens;
  size_t forced_count;
  uint64_t seed;
  uint64_t sample; /* which of several answers to the prompt */
  specplug_acceptance acceptance;

  const int64_t *stop_token_ids; /* NULL: the bundle's; else these, perhaps none. The one that ends
                                    the answer is among its tokens, and not in its text */
  size_t stop_token_count;
  const char *const *stop; /* strings that end the answer; they need a tokenizer */
  size_t stop_count;
  int32_t text; /* 1: runs come with their text, for which there must be a tokenizer */
  const int64_t *prediction; /* the answer that is expected, for drafters that make use of it */
  size_t prediction_count;
  const char *tenant; /* on whose behalf: earlier texts are kept apart by it; NULL: "" */

  specplug_on_run on_run; /* NULL: nobody is told */
  void *user_data;
} specplug_generation_options;

SPECPLUG_API void specplug_generation_options_init(specplug_generation_options *options);

/* Generate until a stop token or string, max_tokens, the context's end, or a cancellation.
 *
 * prompt, count: token ids, at least one. options: may be NULL.
 * What came of it is had from specplug_decoder_tokens() and specplug_decoder_get_stats(), after an
 * error, too, as far as it came.
 * Errors: INVALID_ARGUMENT and CONTEXT_LIMIT before any work; BUSY; ENGINE; UNSUPPORTED. A
 * generation that was cancelled is no error. */
SPECPLUG_API specplug_status specplug_generate(specplug_decoder *decoder, const int64_t *prompt,
                                               size_t count,
                                               const specplug_generation_options *options);

/* End the running generation before its next call of the target: within a round. Callable from any
 * thread, and from a signal handler. Does nothing if no generation runs. */
SPECPLUG_API void specplug_decoder_cancel(specplug_decoder *decoder);

/* The new tokens of the latest generation; valid until the next one begins. Errors: BUSY. */
SPECPLUG_API specplug_status specplug_decoder_tokens(const specplug_decoder *decoder,
                                                     const int64_t **ids, size_t *count);

typedef enum specplug_finish_reason {
  SPECPLUG_FINISH_NONE = 0, /* nothing was generated, or an error ended it */
  SPECPLUG_FINISH_STOP = 1, /* stop token or string */
  SPECPLUG_FINISH_LENGTH = 2,
  SPECPLUG_FINISH_CONTEXT = 3,
  SPECPLUG_FINISH_CANCELLED = 4
} specplug_finish_reason;

/* Of one generation. A round is one call of the target after the prompt's own. */
typedef struct specplug_stats {
  size_t size; /* set by the caller to sizeof(specplug_stats) */
  specplug_finish_reason finish_reason;
  int64_t prompt_tokens;
  int64_t new_tokens;
  int64_t rounds;
  int64_t drafted;
  int64_t accepted;
  int64_t draft_length; /* the most tokens that a round was allowed to draft */
  double prefill_seconds; /* from the call to the first token */
  double decode_seconds;  /* from the first token to the last */
  double target_seconds;  /* in the target's calls and the choice of tokens, prompt included */
  double draft_seconds;   /* in the drafter, its model's calls included */
  double engine_seconds;  /* in ONNX Runtime, target and draft, after the prompt's own call */
  const int32_t *drafted_per_round; /* rounds numbers each; valid until the next generation */
  const int32_t *accepted_per_round;
  int64_t draft_failures;  /* how often a draft model failed: the text went on without it. One that
                              failed drafts no more in this generation, and after three times never
                              again with this decoder */
  const char *draft_error; /* what it said last; "" if nothing; valid until the next generation */
} specplug_stats;

/* Statistics of the latest generation. Errors: BUSY. */
SPECPLUG_API specplug_status specplug_decoder_get_stats(const specplug_decoder *decoder,
                                                        specplug_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
