// Characters: UTF-8, what kind they are, and composed form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace specplug::native {

constexpr char32_t kNoCharacter = 0xFFFFFFFF;

// The character at a place, which is moved past it. Where the bytes are none, kNoCharacter, and the
// place is moved past the longest part that could have begun one, at least a byte.
char32_t next_character(std::string_view text, std::size_t& place);

void append_character(std::string& text, char32_t character);

// Throws Error(INVALID_ARGUMENT) if it is not UTF-8.
std::u32string characters(std::string_view text);

// By general category, as the names in expressions have it: L, N, Lu, Ll, Lt, Lm, Lo, Nd, M, P, S.
bool is_letter(char32_t character);
bool is_number(char32_t character);
bool is_upper(char32_t character);
bool is_lower(char32_t character);
bool is_title(char32_t character);
bool is_modifier(char32_t character);
bool is_caseless(char32_t character);
bool is_digit(char32_t character);
bool is_mark(char32_t character);
bool is_punctuation(char32_t character);
bool is_symbol(char32_t character);
bool is_space(char32_t character);
bool is_han(char32_t character);

// Normalization form C.
std::u32string composed(const std::u32string& text);

}  // namespace specplug::native
