#include "expression.hpp"

#include <algorithm>
#include <iterator>

#include "error.hpp"
#include "unicode.hpp"

namespace specplug::native {
namespace {

constexpr std::size_t kMostSteps = 30'000'000;  // over one text, beside some for each character
constexpr std::size_t kMostCode = 20'000;       // instructions
constexpr std::size_t kMostTimes = 100'000;
constexpr int kDeepestGroup = 40;  // groups and sets in one another
constexpr std::size_t kEndless = SIZE_MAX;

struct Property {
  std::string_view name;
  CharacterSet::Kind kind;
};
constexpr Property kProperties[] = {
    {"L", is_letter},        {"Lu", is_upper}, {"Ll", is_lower},  {"Lt", is_title},
    {"Lm", is_modifier},     {"Lo", is_caseless}, {"N", is_number}, {"Nd", is_digit},
    {"M", is_mark},          {"P", is_punctuation}, {"S", is_symbol}, {"Han", is_han},
};

}  // namespace

void CharacterSet::finish() {
  for (char32_t character = 0; character < ascii_.size(); ++character) {
    ascii_[character] = find(character);
  }
}

bool CharacterSet::find(char32_t character) const {
  bool found = std::any_of(ranges_.begin(), ranges_.end(), [&](const auto& range) {
    return character >= range.first && character <= range.second;
  });
  found = found || std::any_of(kinds_.begin(), kinds_.end(), [&](const auto& kind) {
            return kind.first(character) != kind.second;
          });
  found = found || std::any_of(inner_.begin(), inner_.end(),
                               [&](const auto& inner) { return inner.find(character); });
  found = found && std::all_of(also_.begin(), also_.end(),
                               [&](const auto& other) { return other.find(character); });
  return found != negated_;
}

// From letters to instructions, by descent.
class ExpressionParser {
 public:
  ExpressionParser(std::string_view pattern, Expression& made)
      : pattern_(pattern), letters_(characters(pattern)), made_(made) {}

  void parse() {
    auto all = alternatives(0);
    if (at_ < letters_.size()) unknown("')' that closes nothing");
    all.code.push_back({Op::found});
    made_.code_ = std::move(all.code);
    for (auto& set : made_.sets_) set.finish();
  }

 private:
  using Op = Expression::Op;
  struct Part {
    Expression::Code code;
    std::size_t shortest = 0;  // match
    bool one = false;          // a single character's
  };

  [[noreturn]] void unknown(const std::string& what) const {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "this library's tokenizer has no ", what, ", as in the ",
         "pre_tokenizer expression ", in_quotes(pattern_), ": pass token ids, or tokenize in Python");
  }

  bool done() const { return at_ == letters_.size(); }
  char32_t peek() const { return done() ? 0 : letters_[at_]; }
  bool take(std::u32string_view wanted) {
    if (std::u32string_view(letters_).substr(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }
  char32_t next() {
    if (done()) unknown("end in the middle of something");
    return letters_[at_++];
  }

  static std::int32_t distance(std::size_t length) { return static_cast<std::int32_t>(length); }

  void append(Part& part, const Expression::Code& more) const {
    part.code.insert(part.code.end(), more.begin(), more.end());
    if (part.code.size() > kMostCode) unknown("room for so long an expression");
  }

  Part alternatives(int depth) {
    if (depth > kDeepestGroup) unknown(text_of("groups that are nested more than ", kDeepestGroup, " deep"));
    std::vector<Part> ways;
    do ways.push_back(sequence(depth));
    while (take(U"|"));
    Part made = std::move(ways.back());
    for (auto way = ways.rbegin() + 1; way != ways.rend(); ++way) {
      Part both;
      both.code.push_back({Op::either, distance(way->code.size() + 2)});
      append(both, way->code);
      both.code.push_back({Op::jump, distance(made.code.size() + 1)});
      append(both, made.code);
      both.shortest = std::min(way->shortest, made.shortest);
      made = std::move(both);
    }
    return made;
  }

  Part sequence(int depth) {
    Part made;
    bool first = true;
    while (!done() && peek() != '|' && peek() != ')') {
      auto part = repeated(atom(depth));
      if (first) {
        made = std::move(part);
      } else {
        append(made, part.code);
        made.shortest += part.shortest;
        made.one = false;
      }
      first = false;
    }
    return made;
  }

  Part atom(int depth) {
    if (take(U"(")) {
      if (take(U"?=")) return look(depth, false);
      if (take(U"?!")) return look(depth, true);
      const bool before = any_case_;
      if (take(U"?i:")) any_case_ = true;
      else if (!take(U"?:") && peek() == '?') unknown("group of this kind");
      auto made = alternatives(depth + 1);
      close();
      any_case_ = before;
      return made;
    }
    CharacterSet set;
    if (take(U"[")) {
      set = bracketed(depth + 1);
    } else if (take(U"\\z")) {
      return {{{Op::end}}, 0, false};
    } else if (take(U".")) {
      set.add('\n', '\n');
      set.negate();
    } else if (peek() == '\\') {
      ++at_;
      escaped(set);
    } else {
      const auto letter = next();
      if (std::u32string_view(U"*+?{^$").find(letter) != std::u32string_view::npos) {
        unknown(text_of("'", static_cast<char>(letter), "' here"));
      }
      add(set, letter, letter);
      check_folding(letter);
    }
    made_.sets_.push_back(std::move(set));
    return {{{Op::one, 0, made_.sets_.size() - 1}}, 1, true};
  }

  // Oniguruma takes some pairs of letters for one character where case does not count.
  void check_folding(char32_t letter) {
    if (!any_case_) return;
    const auto following = peek();
    for (const std::u32string_view pair : {U"ss", U"st", U"ff", U"fi", U"fl"}) {
      if ((letter | 0x20) == pair[0] && (following | 0x20) == pair[1]) {
        unknown("letters that may be one where case does not count");
      }
    }
  }

  Part look(int depth, bool negated) {
    const auto inside = alternatives(depth + 1);
    close();
    Part made;
    made.code.push_back({Op::look, distance(inside.code.size() + 2), 0, 0, 0, negated});
    append(made, inside.code);
    made.code.push_back({Op::found});
    return made;
  }

  void close() {
    if (!take(U")")) unknown("group without an end");
  }

  Part repeated(Part part) {
    std::size_t least = 1;
    std::size_t most = 1;
    bool keeps = false;
    if (take(U"?")) {
      least = 0;
      keeps = take(U"+");
    } else if (take(U"*")) {
      least = 0;
      most = kEndless;
      keeps = take(U"+");
    } else if (take(U"+")) {
      most = kEndless;
      keeps = take(U"+");
    } else if (take(U"{")) {
      const auto from = number();
      const bool open = take(U",");
      const auto to = number();
      if (!take(U"}") || (!from && !to)) unknown("'{' of this kind");
      least = from.value_or(0);
      most = !open ? least : to.value_or(kEndless);
      if (most < least) unknown("'{' of this kind");
    } else {
      return part;
    }
    if (std::u32string_view(U"?*+{").find(peek()) != std::u32string_view::npos && !done()) {
      unknown("lazy repeat, or repeat of a repeat");
    }
    if (part.one) {
      const auto set = part.code[0].set;
      return {{{Op::repeat, 0, set, least, most, keeps}}, least, false};
    }
    if (keeps) unknown("repeat of a group that gives nothing back");
    if (!part.shortest) unknown("repeat of what may be empty");
    Part made;
    for (std::size_t i = 0; i < least; ++i) append(made, part.code);
    if (most == kEndless) {
      made.code.push_back({Op::either, distance(part.code.size() + 2)});
      append(made, part.code);
      made.code.push_back({Op::jump, -distance(part.code.size() + 1)});
    } else {
      for (auto left = most - least; left; --left) {  // each of them only after the one before
        made.code.push_back({Op::either, distance(left * (part.code.size() + 1))});
        append(made, part.code);
      }
    }
    made.shortest = least * part.shortest;
    return made;
  }

  std::optional<std::size_t> number() {
    std::optional<std::size_t> found;
    while (peek() >= '0' && peek() <= '9') {
      found = found.value_or(0) * 10 + (next() - '0');
      if (*found > kMostTimes) unknown(text_of("repeat of more than ", kMostTimes, " times"));
    }
    return found;
  }

  // After '[': a set up to its ']'.
  CharacterSet bracketed(int depth) {
    if (depth > kDeepestGroup) unknown(text_of("sets that are nested more than ", kDeepestGroup, " deep"));
    CharacterSet set;
    const bool negated = take(U"^");
    bool any = false;
    while (!take(U"]")) {
      if (take(U"&&")) {
        CharacterSet rest = bracketed_rest(depth);
        set.restrict_to(std::move(rest));
        break;
      }
      any = true;
      if (take(U"[")) {
        if (peek() == ':') unknown("set by its POSIX name");
        set.add(bracketed(depth + 1));
        continue;
      }
      const auto first = member(set);
      if (!first) continue;
      if (peek() == '-' && at_ + 1 < letters_.size() && letters_[at_ + 1] != ']') {
        ++at_;
        if (peek() == '[') unknown("range of this kind");
        const auto last = member(set);
        if (!last || *last < *first) unknown("range of this kind");
        add(set, *first, *last);
      } else {
        add(set, *first, *first);
      }
    }
    if (!any) unknown("set of nothing");
    if (negated) set.negate();
    return set;
  }

  // After '&&': what else must hold, up to and with the ']'.
  CharacterSet bracketed_rest(int depth) {
    CharacterSet rest;
    if (!take(U"[")) unknown("'&&' of this kind");
    rest.add(bracketed(depth + 1));
    if (!take(U"]")) unknown("'&&' of this kind");
    return rest;
  }

  // A character of a set; none: a kind of characters, which was added.
  std::optional<char32_t> member(CharacterSet& set) {
    const auto letter = next();
    if (letter != '\\') return letter;
    return escape(set);
  }

  void escaped(CharacterSet& set) {
    const auto letter = escape(set);
    if (letter) add(set, *letter, *letter);
  }

  // After '\'.
  std::optional<char32_t> escape(CharacterSet& set) {
    const auto letter = next();
    switch (letter) {
      case 'r': return U'\r';
      case 'n': return U'\n';
      case 't': return U'\t';
      case 'f': return U'\f';
      case 'v': return U'\v';
      case 'x': return take(U"{") ? hexadecimal(8, true) : hexadecimal(2, false);
      case 'u': return hexadecimal(4, false);
      case 's': case 'S': set.add(is_space, letter == 'S'); return std::nullopt;
      case 'd': case 'D': set.add(is_digit, letter == 'D'); return std::nullopt;
      case 'p': case 'P': property(set, letter == 'P'); return std::nullopt;
      default: break;
    }
    const bool plain = letter < 0x80 && !is_letter(letter) && !is_number(letter);
    if (!plain) unknown(text_of("\\", letter < 0x80 ? static_cast<char>(letter) : '?'));
    return letter;
  }

  char32_t hexadecimal(int most, bool braced) {
    char32_t found = 0;
    int digits = 0;
    for (; digits < most; ++digits) {
      const auto digit = peek() | 0x20;
      if (peek() >= '0' && peek() <= '9') found = found * 16 + (peek() - '0');
      else if (digit >= 'a' && digit <= 'f') found = found * 16 + (digit - 'a' + 10);
      else break;
      ++at_;
    }
    const bool whole = braced ? digits > 0 && take(U"}") : digits == most;
    const bool a_byte = most == 2 && found >= 0x80;  // of a character, not one
    if (!whole || a_byte || found > 0x10FFFF) unknown("hexadecimal character of this kind");
    return found;
  }

  void property(CharacterSet& set, bool negated) {
    if (any_case_) unknown("property where case does not count");
    std::string name;
    if (!take(U"{")) unknown("property without its name");
    while (peek() != '}') append_character(name, next());
    ++at_;
    const auto* known = std::find_if(std::begin(kProperties), std::end(kProperties),
                                     [&](const Property& one) { return one.name == name; });
    if (known == std::end(kProperties)) unknown(text_of("\\p{", name, "}"));
    set.add(known->kind, negated);
  }

  void add(CharacterSet& set, char32_t first, char32_t last) {
    set.add(first, last);
    if (!any_case_) return;
    if (last >= 0x80) unknown("character beyond ASCII where case does not count");
    for (auto letter = first; letter <= last; ++letter) {
      if (!is_letter(letter)) continue;
      set.add(letter ^ 0x20, letter ^ 0x20);
      if ((letter | 0x20) == 's') set.add(0x17F, 0x17F);    // the long s
      if ((letter | 0x20) == 'k') set.add(0x212A, 0x212A);  // the sign of kelvin
    }
  }

  std::string_view pattern_;
  std::u32string letters_;
  Expression& made_;
  std::size_t at_ = 0;
  bool any_case_ = false;
};

Expression::Expression(std::string_view pattern) { ExpressionParser(pattern, *this).parse(); }

std::vector<std::pair<std::size_t, std::size_t>> Expression::matches(
    std::u32string_view text) const {
  std::vector<std::pair<std::size_t, std::size_t>> found;
  std::size_t steps = 0;
  for (std::size_t place = 0; place <= text.size();) {
    const auto end = run(0, text, place, steps);
    const bool after_match = !found.empty() && found.back().second == place;
    if (!end || (*end == place && after_match)) {
      ++place;
      continue;
    }
    found.emplace_back(place, *end);
    place = *end;
  }
  return found;
}

std::optional<std::size_t> Expression::run(std::size_t pc, std::u32string_view text,
                                           std::size_t place, std::size_t& steps) const {
  struct Way {  // to go on where this one fails
    std::size_t pc;
    std::size_t place;
    std::size_t least;  // fewer characters may be taken, down to this place
  };
  std::vector<Way> others;
  const auto most_steps = kMostSteps + 100 * text.size();
  for (;;) {
    if (++steps > most_steps) {
      fail(SPECPLUG_ERROR_UNSUPPORTED, "the tokenizer's expression takes too long over this text: ",
           "pass token ids, or tokenize in Python");
    }
    const auto& now = code_[pc];
    const auto there = static_cast<std::size_t>(static_cast<std::int64_t>(pc) + now.to);
    bool good = true;
    switch (now.op) {
      case Op::found: return place;
      case Op::end:
        good = place == text.size();
        ++pc;
        break;
      case Op::one:
        good = place < text.size() && sets_[now.set].has(text[place]);
        ++place;
        ++pc;
        break;
      case Op::repeat: {
        const auto room = std::min(now.most, text.size() - place);
        const auto& set = sets_[now.set];
        std::size_t taken = 0;
        while (taken < room && set.has(text[place + taken])) ++taken;
        steps += taken / 8;
        good = taken >= now.least;
        if (good && taken > now.least && !now.flag) {
          others.push_back({pc + 1, place + taken - 1, place + now.least});
        }
        place += taken;
        ++pc;
        break;
      }
      case Op::either:
        others.push_back({there, place, place});
        ++pc;
        break;
      case Op::jump: pc = there; break;
      case Op::look:
        good = run(pc + 1, text, place, steps).has_value() != now.flag;
        pc = there;
        break;
    }
    if (good) continue;
    if (others.empty()) return std::nullopt;
    auto& other = others.back();
    pc = other.pc;
    place = other.place;
    if (other.place > other.least) --other.place;
    else others.pop_back();
  }
}

}  // namespace specplug::native
