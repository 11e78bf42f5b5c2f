// Errors inside the library: exceptions with a status, turned into one at the C interface.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "specplug/specplug.h"

namespace specplug::native {

class Error : public std::runtime_error {
 public:
  Error(specplug_status status, const std::string& message)
      : std::runtime_error(message), status(status) {}
  specplug_status status;
};

// The shortest digits that mean the same number, as Python writes it: "0.1", "3.0", "1e-40", "nan".
std::string written(double number);

// What a caller gave as text, in quotes: cut where it is long, escaped where it is no plain text.
std::string in_quotes(std::string_view text);

template <typename Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::is_convertible_v<Part, std::string_view>) {
    text += std::string_view(part);
  } else if constexpr (std::is_floating_point_v<Part>) {
    text += written(part);
  } else if constexpr (std::is_same_v<Part, char>) {
    text += part;
  } else {
    text += std::to_string(part);
  }
}

// The parts as one text.
template <typename... Parts>
std::string text_of(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

template <typename... Parts>
[[noreturn]] void fail(specplug_status status, const Parts&... parts) {
  throw Error(status, text_of(parts...));
}

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fail(SPECPLUG_ERROR_INVALID_ARGUMENT, parts...);
}

template <typename... Parts>
[[noreturn]] void damaged(const Parts&... parts) {
  fail(SPECPLUG_ERROR_BUNDLE, parts...);
}

}  // namespace specplug::native
