// Regular expressions as tokenizer.json files have them: Oniguruma's, but for lazy repeats,
// lookbehind, references, and what else no family of tokenizers uses.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace specplug::native {

// Which characters may stand at a place of an expression.
class CharacterSet {
 public:
  using Kind = bool (*)(char32_t);

  void add(char32_t first, char32_t last) { ranges_.push_back({first, last}); }
  void add(Kind kind, bool negated) { kinds_.push_back({kind, negated}); }
  void add(CharacterSet inner) { inner_.push_back(std::move(inner)); }
  void restrict_to(CharacterSet other) { also_.push_back(std::move(other)); }
  void negate() { negated_ = !negated_; }
  void finish();  // when nothing more is added

  bool has(char32_t character) const {
    return character < ascii_.size() ? ascii_[character] : find(character);
  }

 private:
  bool find(char32_t character) const;

  std::vector<std::pair<char32_t, char32_t>> ranges_;
  std::vector<std::pair<Kind, bool>> kinds_;
  std::vector<CharacterSet> inner_;  // also in the set
  std::vector<CharacterSet> also_;   // and what is in the set is in these
  bool negated_ = false;
  std::bitset<128> ascii_;
};

class Expression {
 public:
  // pattern: UTF-8. Throws Error(UNSUPPORTED), naming what is not known.
  explicit Expression(std::string_view pattern);

  // Where it matches, from the left, as first and one after the last; of several ways to match the
  // one that the expression names first. An empty match stands anywhere but after a match.
  // Throws Error(UNSUPPORTED): it would take too long.
  std::vector<std::pair<std::size_t, std::size_t>> matches(std::u32string_view text) const;

 private:
  friend class ExpressionParser;
  enum class Op { one, repeat, either, jump, look, end, found };
  struct Instruction {
    Op op;
    std::int32_t to = 0;     // where to go on, from here: of jump, either's second way, after look
    std::size_t set = 0;     // of one and repeat
    std::size_t least = 0;   // of repeat
    std::size_t most = 0;
    bool flag = false;       // of repeat: gives nothing back; of look: must not match
  };
  using Code = std::vector<Instruction>;

  // Where a match that begins at a place ends.
  std::optional<std::size_t> run(std::size_t pc, std::u32string_view text, std::size_t place,
                                 std::size_t& steps) const;

  Code code_;
  std::vector<CharacterSet> sets_;
};

}  // namespace specplug::native
