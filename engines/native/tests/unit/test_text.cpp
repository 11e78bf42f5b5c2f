// Characters, cutting, and streams of text; tests/test_native_text.py compares with tokenizers.
#include <gtest/gtest.h>

#include "error.hpp"
#include "json.hpp"
#include "pretokenizer.hpp"
#include "text_stream.hpp"
#include "unicode.hpp"

namespace specplug::native {
namespace {

TEST(Characters, WhatIsNotUtf8IsReplaced) {
  EXPECT_EQ(repaired("a\xffz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(repaired("\xE2\x82"), "\xEF\xBF\xBD");                          // cut short: one
  EXPECT_EQ(repaired("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");              // overlong: each
  EXPECT_EQ(repaired("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(repaired("\xF0\x9F\x98\x80"), "\xF0\x9F\x98\x80");
  EXPECT_THROW(characters("\xff"), Error);
}

TEST(Characters, AreComposed) {
  EXPECT_EQ(composed(U"e\u0301"), U"\u00E9");
  EXPECT_EQ(composed(U"\u1112\u1161\u11AB"), U"\uD55C");
  EXPECT_EQ(composed(U"a\u0323\u0302"), U"\u1EAD");
  EXPECT_EQ(composed(U"a\u0302\u0323"), U"\u1EAD");  // in whatever order
  EXPECT_EQ(composed(U"\u212B"), U"\u00C5");
  EXPECT_EQ(composed(U"\u0958"), U"\u0915\u093C");   // excluded from composition
}

TEST(Pretokenizer, CutsAsGpt2Does) {
  const Pretokenizer cutter(Json::parse(
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})", "x"));
  const std::vector<std::string> expected{"It", "'s", " 12", " o", "'", "clock", " !?", "  ", " x", "\n"};
  EXPECT_EQ(cutter.pieces(U"It's 12 o'clock !?   x\n"), expected);
  EXPECT_THROW(Pretokenizer(Json::parse(R"({"type": "Metaspace"})", "x")), Error);
  EXPECT_THROW(Pretokenizer{Json()}, Error);
}

// Bytes as tokens.
std::string byte_tokenizer() {
  std::string vocab;
  for (unsigned b = 0; b < 256; ++b) {
    const bool seen = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    static char32_t next = 256;
    std::string letter;
    append_character(letter, seen ? b : next++);
    if (letter == "\"" || letter == "\\") letter = "\\" + letter;
    vocab += (b ? ",\"" : "\"") + letter + "\":" + std::to_string(b);
  }
  return R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)"
         R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","merges":[],"vocab":{)" + vocab +
         "}}}";
}

TEST(TextStream, HoldsBackWhatIsNotYetText) {
  const Tokenizer tokenizer(byte_tokenizer());
  const std::string text = "\xE2\x82\xAC" "uro STOP now";
  const auto ids = tokenizer.encode(text, true);
  ASSERT_EQ(ids.size(), text.size());
  TextStream stream(&tokenizer, {"STOP", "TO the end"});
  std::string shown;
  std::vector<std::string> pieces;
  for (const auto id : ids) {
    pieces.push_back(stream.push(id, false));
    shown += pieces.back();
    if (stream.stopped()) break;
  }
  EXPECT_EQ(pieces[0], "");
  EXPECT_EQ(pieces[2], "\xE2\x82\xAC");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(shown, "\xE2\x82\xAC" "uro ");
  TextStream cut(&tokenizer, {});
  EXPECT_EQ(cut.push(ids[0], false), "");
  EXPECT_EQ(cut.push(ids[1], true), "\xEF\xBF\xBD");
}

}  // namespace
}  // namespace specplug::native
