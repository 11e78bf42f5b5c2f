// Reading an object's fields: each asked for by name and type, and none left over.
#pragma once

#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace specplug::native {

class Fields {
 public:
  // what: the file's name; where: the path of the object in it, for errors.
  Fields(const Json& object, std::string_view what, std::string where);

  // The field, or null if it is not there or null. Asking for a field makes it a known one.
  const Json* find(std::string_view name);
  const Json& get(std::string_view name);
  Fields object(std::string_view name) { return {get(name), what_, path(name)}; }

  std::string text(std::string_view name, std::size_t longest = SIZE_MAX);
  std::string one_of(std::string_view name, std::initializer_list<std::string_view> allowed);
  std::int64_t integer(std::string_view name, std::int64_t least, std::int64_t most);
  double number(std::string_view name, double least);
  const Json::Array& array(std::string_view name, std::size_t least = 0);
  std::vector<std::int64_t> integers(std::string_view name, std::int64_t least);
  std::string sha256(std::string_view name);
  const Json::Object* members() const { return object_; }
  std::int64_t as_count(const std::string& name, std::int64_t least) const;  // a name in digits

  std::string path(std::string_view name) const;
  [[noreturn]] void wrong(std::string_view name, std::string_view wanted) const;

  // Throws Error(BUNDLE) if the object has a field that nobody asked for.
  void done() const;

 private:
  const Json::Object* object_;
  std::string_view what_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace specplug::native
