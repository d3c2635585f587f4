#include "base/error.h"

namespace whit {

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
