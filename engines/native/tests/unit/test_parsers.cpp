// Files from strangers: hashes, manifests, graphs.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "fields.hpp"
#include "graph_check.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

namespace specplug::native {
namespace {

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.status, SPECPLUG_ERROR_BUNDLE);
    return error.what();
  }
  return "";
}

std::string read(const std::string& name) {
  std::ifstream stream(std::string(SPECPLUG_TEST_DATA) + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(Sha256, OfKnownTexts) {
  const auto of = [](const std::string& text, std::size_t piece) {
    Sha256 hash;
    for (std::size_t i = 0; i < text.size(); i += piece) {
      hash.update(text.data() + i, std::min(piece, text.size() - i));
    }
    return hash.hexadecimal();
  };
  EXPECT_EQ(of("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(of("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string million(1'000'000, 'a');  // FIPS 180-2
  for (const std::size_t piece : {1UL, 63UL, 64UL, 1000UL, 1'000'000UL}) {
    EXPECT_EQ(of(million, piece),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST(Json, IsBoundedAndExact) {
  EXPECT_NE(message_of([] { Json::parse(std::string(1000, '['), "x"); }), "");
  EXPECT_NE(message_of([] { Json::parse("{\"a\": 1,}", "x"); }), "");
  EXPECT_NE(message_of([] { Json::parse("\"\xff\"", "x"); }), "");
  const auto json = Json::parse(R"({"a": [1, 2.5, null, true, "t"], "b": 18446744073709551615})", "x");
  EXPECT_EQ(*(*json["a"].as<Json::Array>())[0].as<std::int64_t>(), 1);
  EXPECT_EQ(json["b"].as<std::int64_t>(), nullptr);
  EXPECT_TRUE(json["c"]["d"].null());
}

TEST(Manifest, NamesTheFieldThatIsWrong) {
  const auto good = read("manifest/draft.json");
  EXPECT_NO_THROW(parse_manifest(good));
  const auto with = [&](const std::string& from, const std::string& to) {
    auto changed = good;
    const auto at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    changed.replace(at, from.size(), to);
    return message_of([&] { parse_manifest(changed); });
  };
  EXPECT_NE(with("\"schema_version\": 1", "\"schema_version\": 2").find("version"), std::string::npos);
  EXPECT_NE(with("\"path\": \"target/", "\"path\": \"../").find("path"), std::string::npos);
  EXPECT_NE(with("\"path\": \"target/", "\"path\": \"/").find("path"), std::string::npos);
  EXPECT_NE(with("\"vocab_size\": ", "\"vocab_size\": -").find("vocab_size"), std::string::npos);
  EXPECT_NE(with("\"dialect\": \"ort\"", "\"dialect\": \"x\"").find("dialect"), std::string::npos);
  EXPECT_NE(with("\"vocab_size\"", "\"vocab_sise\"").find("vocab_size"), std::string::npos);
  EXPECT_NE(with("\"min_width\": ", "\"min_width\": 3").find("min_width"), std::string::npos);
}

TEST(Tuning, CountsForItsOwnMachineAlone) {
  const std::string text = R"({"schema_version": 1, "tuned": [{"machine": "m", "engine": "e",
    "device": "cpu", "threads": null, "precision": "fp32", "graph_sha256": "h",
    "contexts": {"64": {"1": 0.25, "4": 0.5}}}]})";
  const auto found = parse_tuning(text, {"m", "e", "cpu", {}, "fp32", "h"});
  EXPECT_EQ(found.at(64).at(4), 0.5);
  EXPECT_TRUE(parse_tuning(text, {"m", "e", "cpu", 2, "fp32", "h"}).empty());
  EXPECT_TRUE(parse_tuning(text, {"n", "e", "cpu", {}, "fp32", "h"}).empty());
}

TEST(Graph, DomainsAndDataAreFound) {
  const auto found = read_references(read("graph/small.onnx"));
  EXPECT_TRUE(found.domains.count("com.microsoft"));
  ASSERT_FALSE(found.external.empty());
  EXPECT_EQ(found.external[0].at("location"), "model.onnx.data");
  EXPECT_NE(message_of([] { read_references(""); }), "");
  EXPECT_NE(message_of([] { read_references("\x3a\x7f"); }), "");
}

}  // namespace
}  // namespace specplug::native
