#include "tokenizer/byte_level.h"

#include "tokenizer/unicode.h"

namespace whit {
namespace {

struct Alphabet {
  std::array<char32_t, 256> characters{};
  std::array<int16_t, 0x144> bytes{};

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t character = printable ? static_cast<char32_t>(byte) : next++;
      characters[static_cast<size_t>(byte)] = character;
      bytes[character] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

char32_t byte_level_character(uint8_t byte) { return alphabet().characters[byte]; }

std::optional<uint8_t> byte_level_byte(char32_t character) {
  const auto& bytes = alphabet().bytes;
  if (character >= bytes.size() || bytes[character] < 0) return std::nullopt;
  return static_cast<uint8_t>(bytes[character]);
}

void append_byte_level(std::string_view bytes, std::string& out) {
  const auto& characters = alphabet().characters;
  for (const char byte : bytes) append_utf8(characters[static_cast<uint8_t>(byte)], out);
}

std::string byte_level_bytes(std::string_view token) {
  std::string out;
  for (size_t pos = 0; pos < token.size();) {
    const CodePoint c = code_point_at(token, pos);
    const auto byte = byte_level_byte(c.value);
    if (!byte) return std::string(token);
    out += static_cast<char>(*byte);
    pos += c.bytes;
  }
  return out;
}

}  // namespace whit
