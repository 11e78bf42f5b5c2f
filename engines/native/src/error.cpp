#include "error.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace specplug::native {

std::string written(double number) {
  if (std::isnan(number)) return "nan";
  char digits[32];
  for (int precision = 15; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, number);
    if (std::strtod(digits, nullptr) == number) break;
  }
  std::string found = digits;
  const bool whole = found.find_first_not_of("-0123456789") == std::string::npos;
  return whole ? found + ".0" : found;
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t most = 80;
  std::string found = "'";
  for (const char one : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(one);
    if (byte >= ' ' && byte < 0x7F) {
      found += one;
    } else {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
      found += escaped;
    }
  }
  return found + (text.size() > most ? "...'" : "'");
}

}  // namespace specplug::native
