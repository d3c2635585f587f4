// A model compared with its original while only one layer of each is in memory: for models that are
// larger than memory, and for engines that are not in place yet.
//
// Resident: the hidden states of all scored tokens, twice ([tokens, D] f32), one layer of each
// model, its keys and values, and, at the end, both heads. Figures are those of evaluate().
#pragma once

#include "engine/model.h"
#include "evaluate/evaluate.h"

namespace whit {

// Windows as evaluate() cuts them; options.kv_dtype is not read: both models keep keys and values
// as they would when run. Throws kInvalidArgument for vocabularies that differ, and as evaluate().
EvalResult evaluate_streamed(const Model& model, const Model& reference,
                             std::span<const int32_t> ids, const EvalOptions& options, cpu::Isa isa,
                             ThreadPool& pool);

// Bytes that it needs beside the mapped files, for so many tokens.
int64_t streamed_bytes(const Model& reference, int64_t tokens, int64_t ctx_size);

}  // namespace whit
