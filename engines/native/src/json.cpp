#include "json.hpp"

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace specplug::native {
namespace {

constexpr std::size_t kDeepestValue = 64;

// Takes the parser's events, so that no tree of the library's own is built beside ours.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Json root;
  std::string fault;

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(std::int64_t value) override { return put(value); }
  bool number_unsigned(std::uint64_t value) override {
    if (value > INT64_MAX) return put(static_cast<double>(value));
    return put(static_cast<std::int64_t>(value));
  }
  bool number_float(double value, const std::string&) override { return put(value); }
  bool string(std::string& value) override { return put(std::move(value)); }
  bool binary(nlohmann::json::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::Object()); }
  bool start_array(std::size_t) override { return open(Json::Array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&)
      override {
    fault = text_of("not JSON at byte ", position);
    return false;
  }

 private:
  bool put(Json::Value value) { return place(Json(std::move(value))) != nullptr; }

  Json* place(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    if (auto* array = open_.back()->as<Json::Array>()) return &array->emplace_back(std::move(value));
    auto* object = open_.back()->as<Json::Object>();
    return &object->emplace_back(std::move(key_), std::move(value)).second;
  }

  bool open(Json::Value value) {
    if (open_.size() == kDeepestValue) {
      fault = text_of("nested more than ", kDeepestValue, " deep");
      return false;
    }
    // Pointers stay good: nothing is added to a container while one inside it is open.
    open_.push_back(place(Json(std::move(value))));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<Json*> open_;
  std::string key_;
};

}  // namespace

Json Json::parse(std::string_view text, std::string_view name) {
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    damaged(name, " is damaged: ", builder.fault.empty() ? "not JSON" : builder.fault);
  }
  return std::move(builder.root);
}

const Json& Json::operator[](std::string_view name) const {
  static const Json nothing;
  if (const auto* object = as<Object>()) {
    for (const auto& [key, value] : *object) {
      if (key == name) return value;
    }
  }
  return nothing;
}

}  // namespace specplug::native
