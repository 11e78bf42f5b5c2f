#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "error.hpp"

namespace specplug::native {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr std::size_t kChunk = 128;  // of the vocabulary; bounds the search for the k-th largest
constexpr double kFloors[] = {0x1p-4, 0x1p-8, 0x1p-12, 0x1p-16, 0.0};  // of what top-p sorts

using Indices = std::vector<std::size_t>;

std::size_t at(std::int64_t token) { return static_cast<std::size_t>(token); }

template <typename Values>
Values picked(const Values& values, const Indices& indices) {
  Values found;
  found.reserve(indices.size());
  for (const auto index : indices) found.push_back(values[index]);
  return found;
}

template <typename Value>
Value kth_largest(std::vector<Value> values, std::size_t k) {
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(values.begin(), place, values.end(), std::greater<>());
  return *place;
}

double sum(const std::vector<double>& values) { return pairwise_sum(values.data(), values.size()); }

// Where the k largest are, ties with the last of them included, -inf left out; ascending.
Indices largest(const std::vector<float>& values, std::size_t k) {
  float bound = kNever;
  const auto chunks = values.size() / kChunk;
  if (chunks > k) {  // at least k values are as large as the k-th largest peak
    std::vector<float> peaks(chunks);
    for (std::size_t i = 0; i < chunks; ++i) {
      const auto* from = values.data() + i * kChunk;
      peaks[i] = *std::max_element(from, from + kChunk);
    }
    bound = kth_largest(std::move(peaks), k);
  }
  Indices candidates;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= bound) candidates.push_back(i);
  }
  if (candidates.size() > k) bound = kth_largest(picked(values, candidates), k);
  const auto out = [&](std::size_t i) { return values[i] < bound || values[i] == kNever; };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), out), candidates.end());
  return candidates;
}

// Tokens that are reached, likeliest first, before their mass is `bound`.
Indices top_p(const std::vector<double>& weights, double bound) {
  const double wanted = bound * sum(weights);
  const double most = *std::max_element(weights.begin(), weights.end());
  Indices among;
  for (const double floor : kFloors) {  // few tokens are usually enough, and sorting takes long
    among.clear();
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] >= floor * most) among.push_back(i);
    }
    if (sum(picked(weights, among)) >= wanted) break;
  }
  std::stable_sort(among.begin(), among.end(),
                   [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  double mass = 0;
  std::size_t reached = 0;
  while (reached < among.size()) {
    mass += weights[among[reached++]];
    if (mass >= wanted) break;
  }
  among.resize(reached);
  std::sort(among.begin(), among.end());
  return among;
}

Indices min_p(const std::vector<double>& weights, double bound) {
  const double least = bound * *std::max_element(weights.begin(), weights.end());
  Indices kept;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= least) kept.push_back(i);
  }
  return kept;
}

Indices typical_p(const std::vector<double>& weights, double bound) {
  const double total = sum(weights);
  Indices possible;
  std::vector<double> shares;
  std::vector<double> surprise;
  std::vector<double> products;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double share = weights[i] / total;
    if (share == 0) continue;
    possible.push_back(i);
    shares.push_back(share);
    surprise.push_back(-std::log(share));
    products.push_back(share * surprise.back());
  }
  const double entropy = sum(products);
  std::vector<double> distance;
  distance.reserve(surprise.size());
  for (const double one : surprise) distance.push_back(std::abs(one - entropy));
  Indices order(possible.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return distance[a] < distance[b]; });
  double mass = 0;
  std::size_t last = 0;
  for (; last < order.size(); ++last) {
    mass += shares[order[last]];
    if (mass >= bound) break;
  }
  const double farthest = distance[order[std::min(last, order.size() - 1)]];
  Indices kept;
  for (std::size_t i = 0; i < possible.size(); ++i) {
    if (distance[i] <= farthest) kept.push_back(possible[i]);
  }
  return kept;
}

// -inf for tokens that would complete an n-gram that occurred.
void ban_repeats(std::vector<float>& logits, const Tokens& history, std::size_t size) {
  if (history.size() < size) return;
  const auto end = history.end() - static_cast<std::ptrdiff_t>(size - 1);
  for (auto from = history.begin(); from + static_cast<std::ptrdiff_t>(size) <= history.end();
       ++from) {
    if (std::equal(end, history.end(), from)) {
      logits[at(from[static_cast<std::ptrdiff_t>(size - 1)])] = kNever;
    }
  }
}

constexpr auto kScales = "in [1e-8, 1e8]";
constexpr auto kShifts = "in [-1e30, 1e30]";

// Whether logits can be multiplied and divided by a value in single precision.
bool scales(double value) { return value >= 1e-8 && value <= 1e8; }

// Whether a value can be added to logits in single precision.
bool shifts(double value) { return value >= -1e30 && value <= 1e30; }

template <typename Value>
void require(bool good, const char* name, Value value, const char* allowed) {
  if (!good) refuse(name, " ", value, ": it must be ", allowed);
}

}  // namespace

void SamplingParams::check(std::int64_t vocab_size) const {
  require(temperature >= 0 && std::isfinite(temperature), "temperature", temperature, ">= 0");
  require(temperature == 0 || scales(temperature), "temperature", temperature,
          "0, or in [1e-8, 1e8]");
  require(top_k >= 0, "top_k", top_k, ">= 0");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "in (0, 1]");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "in [0, 1]");
  require(typical_p > 0 && typical_p <= 1, "typical_p", typical_p, "in (0, 1]");
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty",
          repetition_penalty, "> 0");
  require(scales(repetition_penalty), "repetition_penalty", repetition_penalty, kScales);
  require(std::isfinite(presence_penalty), "presence_penalty", presence_penalty, "finite");
  require(std::isfinite(frequency_penalty), "frequency_penalty", frequency_penalty, "finite");
  require(shifts(presence_penalty), "presence_penalty", presence_penalty, kShifts);
  require(shifts(frequency_penalty), "frequency_penalty", frequency_penalty, kShifts);
  require(no_repeat_ngram >= 0, "no_repeat_ngram", no_repeat_ngram, ">= 0");
  const auto known = [&](const char* name, std::int64_t token) {
    if (token < 0 || token >= vocab_size) {
      refuse(name, ": token id ", token, " is not in [0, ", vocab_size, ")");
    }
  };
  for (const auto& [token, bias] : logit_bias) {
    known("logit_bias", token);
    if (!shifts(bias)) {
      refuse("logit_bias ", bias, " of token ", token, ": it must be ", kShifts,
             " (banned_tokens excludes tokens)");
    }
  }
  for (const auto token : banned_tokens) known("banned_tokens", token);
  for (const auto& [position, token] : forced_tokens) {
    known("forced_tokens", token);
    if (position < 0) {
      refuse("forced_tokens: position ", position, " of the answer must be >= 0");
    }
    if (std::find(banned_tokens.begin(), banned_tokens.end(), token) != banned_tokens.end()) {
      refuse("forced_tokens: token ", token, " at ", position, " is in banned_tokens");
    }
  }
}

bool SamplingParams::shapes_logits() const {
  return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0 ||
         !logit_bias.empty() || no_repeat_ngram || !banned_tokens.empty() || !forced_tokens.empty();
}

void shape_logits(std::vector<float>& logits, const SamplingParams& params, const Tokens& history,
                  std::size_t prompt_tokens) {
  for (const auto& [token, bias] : params.logit_bias) logits[at(token)] += static_cast<float>(bias);
  const auto answer = history.begin() + static_cast<std::ptrdiff_t>(prompt_tokens);
  std::map<std::int64_t, std::int64_t> counts;
  if (params.repetition_penalty != 1) {
    for (const auto token : history) counts[token] = 0;
    const auto penalty = static_cast<float>(params.repetition_penalty);
    for (const auto& [token, count] : counts) {
      auto& logit = logits[at(token)];
      logit = logit < 0 ? logit * penalty : logit / penalty;
    }
  }
  if (params.presence_penalty != 0 || params.frequency_penalty != 0) {
    counts.clear();
    for (auto token = answer; token != history.end(); ++token) ++counts[*token];
    for (const auto& [token, count] : counts) {
      logits[at(token)] -= static_cast<float>(params.presence_penalty +
                                              params.frequency_penalty * static_cast<double>(count));
    }
  }
  if (params.no_repeat_ngram) ban_repeats(logits, history, at(params.no_repeat_ngram));
  for (const auto token : params.banned_tokens) logits[at(token)] = kNever;
  const auto forced =
      params.forced_tokens.find(static_cast<std::int64_t>(history.size() - prompt_tokens));
  if (forced != params.forced_tokens.end()) {
    std::fill(logits.begin(), logits.end(), kNever);
    logits[at(forced->second)] = 0;
  }
}

Distribution distribution(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<float> scaled(logits.size());
  const auto temperature = static_cast<float>(params.temperature);
  float most = kNever;
  bool numbers = true;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    scaled[i] = logits[i] / temperature;
    most = most < scaled[i] ? scaled[i] : most;
    numbers = numbers && !std::isnan(scaled[i]);
  }
  if (!numbers || !std::isfinite(most)) nothing_left(numbers ? most : NAN);
  Distribution found;
  if (params.top_k && at(params.top_k) < scaled.size()) {
    const auto kept = largest(scaled, at(params.top_k));
    found.tokens.assign(kept.begin(), kept.end());
    found.all = false;
    scaled = picked(scaled, kept);
  }
  found.weights.resize(scaled.size());
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    found.weights[i] = std::exp(static_cast<double>(scaled[i]) - static_cast<double>(most));
  }
  const auto keep = [&](const Indices& kept) {
    found.weights = picked(found.weights, kept);
    if (found.all) {
      found.tokens.assign(kept.begin(), kept.end());
    } else {
      found.tokens = picked(found.tokens, kept);
    }
    found.all = false;
  };
  if (params.top_p != 1) keep(top_p(found.weights, params.top_p));
  if (params.min_p != 0) keep(min_p(found.weights, params.min_p));
  if (params.typical_p != 1) keep(typical_p(found.weights, params.typical_p));
  return found;
}

void nothing_left(float largest) {
  throw NothingLeft(SPECPLUG_ERROR_ENGINE,
                    text_of("no token is left to choose from (largest logit ", largest,
                            "): bans or forced tokens exclude them all"));
}

void no_numbers() {
  fail(SPECPLUG_ERROR_ENGINE,
       "the model's scores are not numbers (NaN, or infinite): the answer ends here; its weights, ",
       "its precision or the device it runs on is at fault");
}

std::int64_t race(const Distribution& found, Fractions noise) {
  constexpr double margin = 1 - 1e-9;  // far more than rounding
  std::size_t first = 0;
  double soonest = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < found.weights.size(); ++i) {
    const double fraction = noise[found.token(i)];
    // E = -log(1 - u) is at least u, which spares nearly all of the logarithms.
    if (fraction * margin > soonest * found.weights[i]) continue;
    const double time = -std::log(1.0 - fraction) / found.weights[i];
    if (time < soonest) {  // 0/0 is no time at all, and not sooner
      soonest = time;
      first = i;
    }
  }
  return found.token(first);
}

double pairwise_sum(const double* values, std::size_t count) {
  if (count < 8) {
    double total = count ? values[0] : 0;
    for (std::size_t i = 1; i < count; ++i) total += values[i];
    return total;
  }
  if (count <= 128) {
    double lanes[8];
    std::copy_n(values, 8, lanes);
    std::size_t i = 8;
    for (; i < count - count % 8; i += 8) {
      for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane];
    }
    double total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                   ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    for (; i < count; ++i) total += values[i];
    return total;
  }
  const auto half = count / 2 - count / 2 % 8;
  return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

}  // namespace specplug::native
