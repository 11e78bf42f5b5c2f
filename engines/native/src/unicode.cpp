#include "unicode.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "error.hpp"

namespace specplug::native {
namespace {

struct Range {
  char32_t first;
  char32_t last;
};

// second: above 0: the two compose, too; -1: there is none; else: its negative, and they do not.
struct Decomposition {
  char32_t character;
  char32_t first;
  std::int32_t second;
};

struct Combining {
  char32_t first;
  char32_t last;
  std::uint8_t order;
};

#include "unicode_classes.inc"
#include "unicode_forms.inc"

template <std::size_t count>
bool within(const Range (&ranges)[count], char32_t character) {
  const auto* above = std::upper_bound(
      ranges, ranges + count, character,
      [](char32_t wanted, const Range& range) { return wanted < range.first; });
  return above != ranges && character <= above[-1].last;
}

std::uint8_t order_of(char32_t character) {
  const auto* above = std::upper_bound(
      std::begin(kCombining), std::end(kCombining), character,
      [](char32_t wanted, const Combining& range) { return wanted < range.first; });
  return above != kCombining && character <= above[-1].last ? above[-1].order : 0;
}

// Hangul syllables are composed by arithmetic.
constexpr char32_t kSyllables = 0xAC00;
constexpr char32_t kSyllableCount = 11172;
constexpr char32_t kLeads = 0x1100;
constexpr char32_t kLeadCount = 19;
constexpr char32_t kVowels = 0x1161;
constexpr char32_t kVowelCount = 21;
constexpr char32_t kTails = 0x11A7;
constexpr char32_t kTailCount = 28;

void decompose(char32_t character, std::u32string& into) {
  if (character >= kSyllables && character < kSyllables + kSyllableCount) {
    const auto index = character - kSyllables;
    into.push_back(kLeads + index / (kVowelCount * kTailCount));
    into.push_back(kVowels + index / kTailCount % kVowelCount);
    if (index % kTailCount) into.push_back(kTails + index % kTailCount);
    return;
  }
  const auto* found = std::lower_bound(
      std::begin(kDecompositions), std::end(kDecompositions), character,
      [](const Decomposition& one, char32_t wanted) { return one.character < wanted; });
  if (found == std::end(kDecompositions) || found->character != character) {
    into += character;
    return;
  }
  decompose(found->first, into);
  if (found->second != -1) into += static_cast<char32_t>(std::abs(found->second));
}

// What two characters compose to; 0: they do not.
char32_t pair_of(char32_t first, char32_t second) {
  if (first >= kLeads && first < kLeads + kLeadCount && second >= kVowels &&
      second < kVowels + kVowelCount) {
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  }
  if (first >= kSyllables && first < kSyllables + kSyllableCount &&
      (first - kSyllables) % kTailCount == 0 && second > kTails && second < kTails + kTailCount) {
    return first + (second - kTails);
  }
  static const auto pairs = [] {
    std::unordered_map<std::uint64_t, char32_t> made;
    for (const auto& one : kDecompositions) {
      if (one.second > 0) {
        made[std::uint64_t{one.first} << 32 | static_cast<std::uint32_t>(one.second)] =
            one.character;
      }
    }
    return made;
  }();
  const auto found = pairs.find(std::uint64_t{first} << 32 | second);
  return found == pairs.end() ? 0 : found->second;
}

}  // namespace

char32_t next_character(std::string_view text, std::size_t& place) {
  const auto byte = [&](std::size_t at) {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U;
  };
  const unsigned first = byte(place++);
  if (first < 0x80) return first;
  const int more = first >= 0xF0 && first < 0xF5   ? 3
                   : first >= 0xE0 && first < 0xF0 ? 2
                   : first >= 0xC2 && first < 0xE0 ? 1
                                                   : 0;
  if (!more) return kNoCharacter;
  char32_t character = first & (0x3F >> more);
  for (int i = 0; i < more; ++i) {
    const unsigned next = byte(place);
    // The second byte of some is narrower: nothing overlong, no surrogates, nothing past the last.
    const unsigned least = i == 0 && first == 0xE0 ? 0xA0 : i == 0 && first == 0xF0 ? 0x90 : 0x80;
    const unsigned most = i == 0 && first == 0xED ? 0x9F : i == 0 && first == 0xF4 ? 0x8F : 0xBF;
    if (next < least || next > most) return kNoCharacter;
    character = character << 6 | (next & 0x3F);
    ++place;
  }
  return character;
}

void append_character(std::string& text, char32_t character) {
  const auto tail = [&](int shift) {
    text += static_cast<char>(0x80 | (character >> shift & 0x3F));
  };
  if (character < 0x80) {
    text += static_cast<char>(character);
  } else if (character < 0x800) {
    text += static_cast<char>(0xC0 | character >> 6);
    tail(0);
  } else if (character < 0x10000) {
    text += static_cast<char>(0xE0 | character >> 12);
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | character >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

std::u32string characters(std::string_view text) {
  std::u32string found;
  for (std::size_t place = 0; place < text.size();) {
    const auto before = place;
    const auto character = next_character(text, place);
    if (character == kNoCharacter) refuse("the text is not UTF-8 at byte ", before);
    found += character;
  }
  return found;
}

bool is_letter(char32_t character) {
  if (character < 0x80) return (character | 0x20) >= 'a' && (character | 0x20) <= 'z';
  return within(kLetters, character);
}

bool is_number(char32_t character) {
  if (character < 0x80) return character >= '0' && character <= '9';
  return within(kNumbers, character);
}

bool is_space(char32_t character) { return within(kSpaces, character); }
bool is_upper(char32_t character) { return within(kUpper, character); }
bool is_lower(char32_t character) { return within(kLower, character); }
bool is_title(char32_t character) { return within(kTitle, character); }
bool is_modifier(char32_t character) { return within(kModifiers, character); }
bool is_caseless(char32_t character) { return within(kCaseless, character); }
bool is_digit(char32_t character) { return within(kDigits, character); }
bool is_mark(char32_t character) { return within(kMarks, character); }
bool is_punctuation(char32_t character) { return within(kPunctuation, character); }
bool is_symbol(char32_t character) { return within(kSymbols, character); }
bool is_han(char32_t character) { return within(kHan, character); }

std::u32string composed(const std::u32string& text) {
  constexpr char32_t unchanged = 0x300;  // nothing below it composes or changes
  if (std::all_of(text.begin(), text.end(), [](char32_t one) { return one < unchanged; })) {
    return text;
  }
  std::u32string parts;
  for (const auto character : text) decompose(character, parts);
  std::vector<std::uint8_t> orders;
  for (const auto part : parts) orders.push_back(order_of(part));
  for (std::size_t i = 0; i < parts.size();) {  // marks in their canonical order
    auto end = i;
    while (end < parts.size() && orders[end]) ++end;
    for (auto at = i; at < end; ++at) {
      for (auto back = at; back > i && orders[back - 1] > orders[back]; --back) {
        std::swap(parts[back - 1], parts[back]);
        std::swap(orders[back - 1], orders[back]);
      }
    }
    i = end + 1;
  }
  std::u32string made;
  std::size_t starter = std::u32string::npos;  // where the last one without an order is in `made`
  std::uint8_t last = 0;                       // the order of what was put after it
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool next_to = starter != std::u32string::npos && starter + 1 == made.size();
    if (starter != std::u32string::npos && (next_to || last < orders[i])) {
      if (const auto pair = pair_of(made[starter], parts[i])) {
        made[starter] = pair;
        continue;
      }
    }
    if (!orders[i]) starter = made.size();
    last = orders[i];
    made += parts[i];
  }
  return made;
}

}  // namespace specplug::native
