// What a request is refused with, in the shape that OpenAI's clients read:
// {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

#include "base/json.h"

namespace whit {

class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string type, const std::string& message, std::string param = "",
           std::string code = "")
      : std::runtime_error(printable(message)),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        code_(std::move(code)) {}

  int status() const { return status_; }
  Json to_json() const {
    const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
    return {{"error",
             {{"message", what()},
              {"type", type_},
              {"param", or_null(param_)},
              {"code", or_null(code_)}}}};
  }

 private:
  int status_;
  std::string type_, param_, code_;
};

// A field that is out of range, of the wrong type or not supported.
inline ApiError invalid_field(std::string param, const std::string& message) {
  return ApiError(400, "invalid_request_error", message, std::move(param), "invalid_value");
}

}  // namespace whit
