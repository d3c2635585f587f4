// The byte-level alphabet of GPT-2 (Radford et al. 2019): every byte has a printable character, so
// that any text is a string over 256 characters. Printable Latin-1 bytes stand for themselves, the
// others for U+0100 upwards.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace whit {

char32_t byte_level_character(uint8_t byte);
// The byte that a character stands for, or nothing if it is not in the alphabet.
std::optional<uint8_t> byte_level_byte(char32_t character);

// Appends the characters of the bytes of `bytes`.
void append_byte_level(std::string_view bytes, std::string& out);

// The bytes that `token` (valid UTF-8) stands for; the token's own bytes where a character is not
// in the alphabet.
std::string byte_level_bytes(std::string_view token);

}  // namespace whit
