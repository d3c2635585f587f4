#include "base/error.h"

namespace whit {

std::string printable(std::string text) {
  for (char& c : text)
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = '?';
  return text;
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return 2;
    case ErrorKind::kInvalidData:
    case ErrorKind::kNotFound:
    case ErrorKind::kUnsupported:
      return 3;
    case ErrorKind::kIo:
      return 4;
    case ErrorKind::kResource:
      return 5;
    case ErrorKind::kInterrupted:
      return 130;
  }
  return 1;
}

}  // namespace whit
