#include "server/tool_parser.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "server/fields.h"

namespace whit {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>";

std::optional<ToolCall> parse_call(const std::string& text) {
  const Json value = parse_inner(text);
  if (!value.is_object() || !value.contains("name") || !value["name"].is_string())
    return std::nullopt;
  for (const char* key : {"arguments", "parameters"})
    if (const auto found = value.find(key); found != value.end() && found->is_object())
      return ToolCall{value["name"].get<std::string>(),
                      found->dump(-1, ' ', false, Json::error_handler_t::replace)};
  return std::nullopt;
}

}  // namespace

void ToolCallParser::scan(Found& found) {
  while (true) {
    if (in_call_) {
      const size_t end = held_.find(kClose);
      if (end == std::string::npos) return;
      if (auto call = parse_call(held_.substr(0, end)))
        found.calls.push_back(std::move(*call));
      else
        found.text += std::string(kOpen) + held_.substr(0, end) + std::string(kClose);
      held_.erase(0, end + kClose.size());
      in_call_ = false;
      continue;
    }
    const size_t begin = held_.find(kOpen);
    if (begin != std::string::npos) {
      found.text += held_.substr(0, begin);
      held_.erase(0, begin + kOpen.size());
      in_call_ = true;
      continue;
    }
    // The end may be the beginning of a mark.
    size_t kept = std::min(held_.size(), kOpen.size() - 1);
    while (kept > 0 && !kOpen.starts_with(std::string_view(held_).substr(held_.size() - kept)))
      --kept;
    found.text += held_.substr(0, held_.size() - kept);
    held_.erase(0, held_.size() - kept);
    return;
  }
}

ToolCallParser::Found ToolCallParser::push(std::string_view piece) {
  Found found;
  held_ += piece;
  if (!begun_) {
    const size_t first = held_.find_first_not_of(" \t\r\n");
    if (first == std::string::npos) return found;
    begun_ = true;
    whole_ = held_[first] == '{';
  }
  if (!whole_) scan(found);
  return found;
}

ToolCallParser::Found ToolCallParser::finish() {
  Found found;
  if (whole_ || in_call_) {
    if (auto call = parse_call(held_)) {
      found.calls.push_back(std::move(*call));
      held_.clear();
      in_call_ = false;
    }
  }
  if (std::exchange(in_call_, false)) found.text = kOpen;
  found.text += std::exchange(held_, {});
  return found;
}

}  // namespace whit
