#include "pretokenizer.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include "error.hpp"
#include "tokenizer_keys.hpp"
#include "unicode.hpp"

namespace specplug::native {
namespace {

// As in the files of Llama 3 (three digits) and of Qwen 2 and 3 (one digit).
constexpr std::string_view kLlama =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

bool is_break(char32_t character) { return character == '\r' || character == '\n'; }
bool is_other(char32_t character) {
  return !is_space(character) && !is_letter(character) && !is_number(character);
}

// How many characters from a place on are of a kind, at most `most`.
template <typename Kind>
std::size_t run(std::u32string_view text, std::size_t from, Kind kind, std::size_t most = SIZE_MAX) {
  std::size_t length = 0;
  while (length < most && from + length < text.size() && kind(text[from + length])) ++length;
  return length;
}

// The letters after an apostrophe in 's, 't, 're, 've, 'm, 'll, 'd; 0: none of them.
std::size_t contraction(std::u32string_view text, bool any_case) {
  if (text.empty() || text[0] != '\'') return 0;
  const auto letter = [&](std::size_t at) -> char32_t {
    if (at >= text.size()) return 0;
    if (!any_case) return text[at];
    if (text[at] == 0x17F) return 's';  // the long s is an s of another case
    return text[at] >= 'A' && text[at] <= 'Z' ? text[at] + 32 : text[at];
  };
  const auto first = letter(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  const auto second = letter(2);
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  return first == 'l' && second == 'l' ? 3 : 0;
}

// Of spaces before something else the last one is left to it.
std::size_t spaces(std::u32string_view text) {
  const auto length = run(text, 0, is_space);
  return length == text.size() || length == 1 ? length : length - 1;
}

}  // namespace

void not_built_in(std::string_view what) {
  fail(SPECPLUG_ERROR_UNSUPPORTED, "this library's tokenizer has no ", what,
       ": pass token ids, or tokenize in Python");
}

void check_keys(const Json& json, std::string_view object) {
  const auto* members = json.as<Json::Object>();
  if (!members) return;
  std::set<std::string_view> seen;
  for (const auto& [key, value] : *members) {
    const auto name = object.empty() ? key : text_of(object, ".", key);
    if (std::find(std::begin(kTokenizerKeys), std::end(kTokenizerKeys), name) ==
        std::end(kTokenizerKeys)) {
      not_built_in(text_of("key ", in_quotes(name), " of tokenizer.json"));
    }
    if (!seen.insert(key).second) damaged("tokenizer.json is damaged: ", name, " is there twice");
  }
}

Pretokenizer::Pretokenizer(const Json& json) {
  add(json);
  if (!bytes_) not_built_in("pre_tokenizer without ByteLevel");
}

void Pretokenizer::add(const Json& json) {
  check_keys(json, "pre_tokenizer");
  const auto* type = json["type"].as<std::string>();
  const auto flag = [&](std::string_view name, bool otherwise) {
    const auto* found = json[name].as<bool>();
    return found ? *found : otherwise;
  };
  if (!type) not_built_in("text without a pre_tokenizer");
  if (bytes_) not_built_in(text_of("pre_tokenizer ", *type, " after ByteLevel"));
  if (*type == "Sequence") {
    const auto* parts = json["pretokenizers"].as<Json::Array>();
    for (const auto& part : parts ? *parts : Json::Array()) {
      if (part["type"].as<std::string>() && *part["type"].as<std::string>() == "Sequence") {
        not_built_in("sequence in a sequence");
      }
      add(part);
    }
  } else if (*type == "ByteLevel") {
    if (flag("add_prefix_space", true)) steps_.push_back({Cut::prefix});
    if (flag("use_regex", true)) steps_.push_back({Cut::gpt2});
    bytes_ = true;
  } else if (*type == "Digits") {
    steps_.push_back({Cut::digits, flag("individual_digits", false) ? std::size_t{1} : 0});
  } else if (*type == "Split") {
    add_split(json);
  } else {
    not_built_in(text_of("pre_tokenizer ", *type));
  }
}

void Pretokenizer::add_split(const Json& json) {
  const auto* expression = json["pattern"]["Regex"].as<std::string>();
  const auto* behavior = json["behavior"].as<std::string>();
  const auto* inverted = json["invert"].as<bool>();
  if (!expression) not_built_in("Split by anything but a Regex");
  Step step{Cut::expression};
  if (behavior && *behavior == "Removed") {
    (inverted && *inverted ? step.keeps_rest : step.keeps_matches) = false;
  } else if (!behavior || *behavior != "Isolated") {
    not_built_in("Split of another behaviour than Isolated or Removed");
  }
  const bool llama = *expression == kLlama || *expression == kQwen;
  if (llama && step.keeps_matches) {  // nothing is between its matches
    step.cut = Cut::llama;
    step.digits = *expression == kLlama ? 3 : 1;
  } else {
    step.expression = std::make_shared<const Expression>(*expression);
  }
  steps_.push_back(std::move(step));
}

std::vector<std::string> Pretokenizer::pieces(const std::u32string& text) const {
  std::vector<std::u32string> now;
  if (!text.empty()) now.push_back(text);
  for (const auto& step : steps_) {
    std::vector<std::u32string> next;
    for (const auto& piece : now) {
      auto parts = cut(piece, step);
      next.insert(next.end(), std::make_move_iterator(parts.begin()),
                  std::make_move_iterator(parts.end()));
    }
    now = std::move(next);
  }
  std::vector<std::string> found;
  for (const auto& piece : now) {
    auto& bytes = found.emplace_back();
    for (const auto character : piece) append_character(bytes, character);
  }
  return found;
}

std::vector<std::u32string> Pretokenizer::cut(const std::u32string& text, const Step& step) {
  if (step.cut == Cut::prefix) return {text[0] == ' ' ? text : U' ' + text};
  if (step.cut == Cut::expression) return matched(text, step);
  std::vector<std::u32string> parts;
  for (Text rest = text; !rest.empty();) {
    std::size_t length = 0;
    if (step.cut == Cut::gpt2) {
      length = gpt2(rest);
    } else if (step.cut == Cut::llama) {
      length = llama(rest, step.digits);
    } else {
      length = is_number(rest[0]) ? run(rest, 0, is_number, step.digits ? step.digits : SIZE_MAX)
                                  : run(rest, 0, [](char32_t one) { return !is_number(one); });
    }
    parts.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  return parts;
}

std::vector<std::u32string> Pretokenizer::matched(Text text, const Step& step) {
  std::vector<std::u32string> parts;
  std::size_t end = 0;
  const auto put = [&](std::size_t first, std::size_t last, bool kept) {
    if (kept && last > first) parts.emplace_back(text.substr(first, last - first));
  };
  for (const auto& [first, last] : step.expression->matches(text)) {
    put(end, first, step.keeps_rest);
    put(first, last, step.keeps_matches);
    end = last;
  }
  put(end, text.size(), step.keeps_rest);
  return parts;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t Pretokenizer::gpt2(Text text) {
  if (const auto length = contraction(text, false)) return length;
  const std::size_t space = text[0] == ' ';
  for (const auto kind : {is_letter, is_number, is_other}) {
    if (const auto length = run(text, space, kind)) return space + length;
  }
  return spaces(text);
}

std::size_t Pretokenizer::llama(Text text, std::size_t digits) {
  if (const auto length = contraction(text, true)) return length;
  const std::size_t before = !is_break(text[0]) && !is_letter(text[0]) && !is_number(text[0]);
  if (const auto length = run(text, before, is_letter)) return before + length;
  if (const auto length = run(text, 0, is_number, digits)) return length;
  const std::size_t space = text[0] == ' ';
  if (const auto length = run(text, space, is_other)) {
    return space + length + run(text, space + length, is_break);
  }
  auto blank = run(text, 0, is_space);
  while (blank && !is_break(text[blank - 1])) --blank;
  return blank ? blank : spaces(text);
}

}  // namespace specplug::native
