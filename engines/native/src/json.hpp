// JSON from strangers as a tree of values: the only user of the JSON library is json.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace specplug::native {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the file's order
  using Value = std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object>;

  Json() = default;
  Json(Value value) : value_(std::move(value)) {}

  // Throws Error(BUNDLE), with `name` as what is damaged: not JSON, or nested too deeply.
  static Json parse(std::string_view text, std::string_view name);

  template <typename Type>
  const Type* as() const {
    return std::get_if<Type>(&value_);
  }
  template <typename Type>
  Type* as() {
    return std::get_if<Type>(&value_);
  }
  bool null() const { return as<std::nullptr_t>() != nullptr; }

  // A member of an object; null if this is none, or has no such member.
  const Json& operator[](std::string_view name) const;

 private:
  Value value_ = nullptr;
};

}  // namespace specplug::native
