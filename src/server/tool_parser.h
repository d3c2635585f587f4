// Takes calls of tools out of a text that arrives in pieces.
//
// Two forms are known, those in which models write calls as text: <tool_call>{…}</tool_call>
// (Hermes, Qwen and many others), any number of them, and an answer that is one JSON object and
// nothing else (Llama 3). The object has "name" and "arguments" or "parameters". What is not a
// call stays text.
#pragma once

#include <string>
#include <vector>

namespace whit {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON
};

class ToolCallParser {
 public:
  struct Found {
    std::string text;  // what is certainly no part of a call
    std::vector<ToolCall> calls;
  };
  Found push(std::string_view piece);
  Found finish();

 private:
  void scan(Found& found);

  std::string held_;
  bool begun_ = false;    // something but space has been seen
  bool whole_ = false;    // the answer may be one object
  bool in_call_ = false;  // held_ follows an opening mark
};

}  // namespace whit
