// Noise and distributions against numbers that Python wrote down.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "noise.hpp"
#include "sampler.hpp"

namespace specplug::native {
namespace {

nlohmann::json golden(const std::string& name) {
  std::ifstream stream(std::string(SPECPLUG_GOLDEN) + "/" + name);
  return nlohmann::json::parse(stream);
}

TEST(Noise, IsThePublishedPhilox) {
  for (const auto& one : golden("noise.json")) {
    for (std::size_t i = 0; i < one["tokens"].size(); ++i) {
      const auto token = one["tokens"][i].get<std::uint64_t>();
      const auto words = philox({token / 4, one["position"], one["purpose"], one["attempt"]},
                                one["seed"], one["sample"]);
      const auto expected = std::stoull(one["words"][i].get<std::string>(), nullptr, 16);
      EXPECT_EQ(words[token % 4], expected);
    }
    if (one["purpose"] != 0 || one["attempt"] != 0) continue;
    Fractions noise(one["seed"], one["sample"], one["position"]);
    for (std::size_t i = 0; i < one["tokens"].size(); ++i) {
      // The logarithm's last bit may differ from numpy's, as numpy's does between processors.
      const double found = -std::log(1 - noise[one["tokens"][i]]);
      EXPECT_NEAR(found, one["exponentials"][i].get<double>(), 4e-16 * (1 + found));
    }
  }
}

// A row of logits that needs no file: from the noise itself.
std::vector<float> row(std::uint64_t number, std::size_t vocab) {
  Fractions noise(number, 7, 0);
  std::vector<float> logits;
  for (std::size_t token = 0; token < vocab; ++token) {
    const double one = -std::log(1 - noise[static_cast<std::int64_t>(token)]);
    logits.push_back(static_cast<float>(std::floor((one - 1) * 4096) / 1024));
  }
  return logits;
}

SamplingParams params_of(const nlohmann::json& given) {
  SamplingParams params;
  params.temperature = given.value("temperature", 0.0);
  params.top_k = given.value("top_k", 0);
  params.top_p = given.value("top_p", 1.0);
  params.min_p = given.value("min_p", 0.0);
  params.typical_p = given.value("typical_p", 1.0);
  params.repetition_penalty = given.value("repetition_penalty", 1.0);
  params.presence_penalty = given.value("presence_penalty", 0.0);
  params.frequency_penalty = given.value("frequency_penalty", 0.0);
  params.no_repeat_ngram = given.value("no_repeat_ngram", 0);
  params.seed = given.value("seed", std::uint64_t{0});
  return params;
}

TEST(Sampling, ChoosesWhatPythonChooses) {
  for (const auto& one : golden("sampling.json")) {
    const auto vocab = one["vocab"].get<std::size_t>();
    const auto logits = row(one["row"], vocab);
    Sampler sampler(params_of(one["params"]), vocab, one["prompt_tokens"]);
    Scores scores(logits.data(), 1, vocab);
    const auto verdict = sampler.judge(scores, one["history"].get<Tokens>(), {});
    EXPECT_EQ(verdict.bonus, one["token"].get<std::int64_t>()) << one;
    if (!one.contains("kept")) continue;
    const auto found = distribution(logits, params_of(one["params"]));
    EXPECT_EQ(found.weights.size(), one["kept"].get<std::size_t>()) << one;
  }
}

TEST(Sampling, RefusesARowOfNothing) {
  const float none = -INFINITY;
  SamplingParams params;
  params.temperature = 1;
  EXPECT_THROW(distribution({none, none}, params), Error);
  EXPECT_THROW(distribution({1.0F, NAN}, params), Error);
}

TEST(Sampling, AddsInPairsAsNumpyDoes) {
  std::vector<double> values;
  for (int i = 0; i < 1000; ++i) values.push_back(std::exp(-0.01 * i));
  for (const std::size_t count : {0, 1, 7, 8, 100, 128, 129, 1000}) {
    double plain = 0;
    for (std::size_t i = 0; i < count; ++i) plain += values[i];
    EXPECT_NEAR(pairwise_sum(values.data(), count), plain, 1e-11);
  }
}

}  // namespace
}  // namespace specplug::native
