#include "fields.hpp"

#include <algorithm>

#include "error.hpp"

namespace specplug::native {

Fields::Fields(const Json& object, std::string_view what, std::string where)
    : object_(object.as<Json::Object>()), what_(what), where_(std::move(where)) {
  if (!object_) damaged(what_, " is damaged at ", where_, ": an object is needed");
  std::set<std::string_view> seen;
  for (const auto& [name, value] : *object_) {
    if (!seen.insert(name).second) wrong(name, "it is there twice");
  }
}

const Json* Fields::find(std::string_view name) {
  known_.emplace(name);
  for (const auto& [field, value] : *object_) {
    if (field == name) return value.null() ? nullptr : &value;
  }
  return nullptr;
}

const Json& Fields::get(std::string_view name) {
  const auto* found = find(name);
  if (!found) wrong(name, "it is missing");
  return *found;
}

std::string Fields::text(std::string_view name, std::size_t longest) {
  const auto* found = get(name).as<std::string>();
  if (!found || found->size() > longest) wrong(name, "a text is needed");
  return *found;
}

std::string Fields::one_of(std::string_view name,
                           std::initializer_list<std::string_view> allowed) {
  auto found = text(name);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    wrong(name, text_of(found, " is none of those that there are"));
  }
  return found;
}

std::int64_t Fields::integer(std::string_view name, std::int64_t least, std::int64_t most) {
  const auto* found = get(name).as<std::int64_t>();
  if (!found || *found < least || *found > most) {
    wrong(name, text_of("a number from ", least, " to ", most, " is needed"));
  }
  return *found;
}

double Fields::number(std::string_view name, double least) {
  const auto& value = get(name);
  const auto* whole = value.as<std::int64_t>();
  const auto* real = value.as<double>();
  if (!whole && !real) wrong(name, "a number is needed");
  const double found = whole ? static_cast<double>(*whole) : *real;
  if (!(found >= least)) wrong(name, text_of("at least ", least, " is needed"));
  return found;
}

const Json::Array& Fields::array(std::string_view name, std::size_t least) {
  const auto* found = get(name).as<Json::Array>();
  if (!found || found->size() < least) {
    wrong(name, text_of("a list of at least ", least, " is needed"));
  }
  return *found;
}

std::vector<std::int64_t> Fields::integers(std::string_view name, std::int64_t least) {
  std::vector<std::int64_t> found;
  for (const auto& item : array(name)) {
    const auto* number = item.as<std::int64_t>();
    if (!number || *number < least) wrong(name, text_of("numbers from ", least, " on are needed"));
    found.push_back(*number);
  }
  return found;
}

std::string Fields::sha256(std::string_view name) {
  auto found = text(name);
  if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != std::string::npos) {
    wrong(name, "64 hexadecimal digits are needed");
  }
  return found;
}

std::int64_t Fields::as_count(const std::string& name, std::int64_t least) const {
  const bool digits = !name.empty() && name.size() < 12 &&
                      name.find_first_not_of("0123456789") == std::string::npos;
  const auto found = digits ? std::stoll(name) : -1;
  if (found < least) wrong(name, text_of("a number from ", least, " on is needed"));
  return found;
}

std::string Fields::path(std::string_view name) const {
  return where_.empty() ? std::string(name) : text_of(where_, ".", name);
}

void Fields::wrong(std::string_view name, std::string_view wanted) const {
  damaged(what_, " is damaged at ", path(name), ": ", wanted);
}

void Fields::done() const {
  for (const auto& [name, value] : *object_) {
    if (known_.find(name) == known_.end()) wrong(name, "no such field is known");
  }
}

}  // namespace specplug::native
