// Where calibration tokens come from: files that a user names, alone or mixed by weight.
//
// A mixture is written as parts separated by commas or line ends, each SOURCE or SOURCE:WEIGHT
// ("prose.txt:0.7,chat.jsonl:0.3"); an argument that names an existing file is that file, whatever
// its name holds. SOURCE is "self" or a file:
//   *.jsonl      a line is {"text": …}, a conversation {"messages": [{"role", "content"}, …]}
//                (rendered by the model's chat template), or token ids {"ids": […]}, also
//                {"token_ids"} and {"input_ids"}; kinds may mix
//   otherwise    plain text
#pragma once

#include <string>
#include <vector>

#include "engine/model.h"

namespace whit {

struct CalibrationSource {
  std::string source;  // "self" or a path
  double weight = 1;   // relative to the other parts'
  bool operator==(const CalibrationSource&) const = default;
};

// Throws kInvalidArgument for an empty part, a weight that is not in (0, 10⁶], a source given
// twice.
std::vector<CalibrationSource> parse_calibration_sources(const std::string& text);

// The file's tokens in order, conversations and documents one behind the other. Throws kNotFound
// and kInvalidArgument for a file that is missing or empty, kInvalidData naming the line for one
// that is damaged or holds a token that the model does not have, kResource past 256 MB.
std::vector<int32_t> read_calibration_tokens(const Model& model, const std::string& path);

// XXH3-128 of a file's content; throws as above for a missing or empty one.
std::string calibration_file_digest(const std::string& path);

}  // namespace whit
