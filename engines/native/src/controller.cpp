#include "controller.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "tenants.hpp"

namespace specplug::native {
namespace {

constexpr std::size_t kLongest = 31;  // tokens a round, when their number is automatic
constexpr double kKept = 0.96;        // of the running rate, a round
constexpr double kAllowance = 0.01;   // of plain decoding's time may be lost to drafts
constexpr double kCredit = 1.0;       // plain tokens' time, to begin with …
constexpr double kMostCredit = 16.0;  // … and saved up at most
constexpr int kRefreshed = 8;         // rounds between looks at the prices
constexpr int kPatience = 8;          // rounds
constexpr int kLongestRest = 16;
constexpr double kDrift = 0.06;  // of costs, a round
constexpr double kOwnDrift = 0.04;
constexpr double kClip = 1.25;

class FixedLength final : public DraftLength {
 public:
  explicit FixedLength(std::size_t draft_tokens) : longest_(draft_tokens) {}
  std::size_t longest() const override { return longest_; }
  void begin(std::int64_t, const std::string&) override {}
  std::optional<Budget> budget(std::size_t room, bool branching) override {
    const auto most = std::min(longest_, room);
    if (!most) return std::nullopt;
    return Budget{most, branching};
  }
  void record(std::size_t, std::size_t, double, double) override {}

 private:
  std::size_t longest_;
};

// What drafts cost beyond what they gave is paid from a credit, which grows by a hundredth of plain
// decoding's time and by what drafts gain: when it is spent, nothing is drafted.
class MeasuredLength final : public DraftLength {
 public:
  explicit MeasuredLength(CostsByContext costs)
      : by_context_(std::move(costs)),
        costs_(&by_context_.begin()->second),
        prices_(costs_->prices(kLongest)),
        own_(new_balance()) {}

  std::size_t longest() const override { return kLongest; }

  void begin(std::int64_t context, const std::string& tenant) override {
    auto nearest = by_context_.begin();
    for (auto each = by_context_.begin(); each != by_context_.end(); ++each) {
      if (std::llabs(each->first - context) < std::llabs(nearest->first - context)) nearest = each;
    }
    costs_ = &nearest->second;
    prices_ = costs_->prices(kLongest);
    own_ = balances_.of(tenant, [this] { return new_balance(); });
  }

  std::optional<Budget> budget(std::size_t room, bool branching) override {
    own_->asked = false;
    if (++rounds_ % kRefreshed == 0) prices_ = costs_->prices(kLongest);
    if (own_->rest) {
      --own_->rest;
      return std::nullopt;
    }
    auto most = std::min(kLongest, room);
    while (most > 0 && prices_.seconds[most] > own_->credit) --most;
    if (!most) return std::nullopt;
    own_->asked = true;
    return Budget{most, branching, &prices_, rate()};
  }

  void record(std::size_t drafted, std::size_t tokens, double target_seconds,
              double draft_seconds) override {
    costs_->observe(1 + drafted, target_seconds);
    const double plain = costs_->at(1);
    const double spent = costs_->at(1 + drafted) + draft_seconds;
    const auto made = static_cast<double>(tokens);
    own_->tokens = kKept * own_->tokens + made;
    own_->seconds = kKept * own_->seconds + spent;
    const double gained = drafted ? made * plain - spent : -draft_seconds;
    own_->credit = std::min(own_->credit + gained + kAllowance * made * plain, kMostCredit * plain);
    if (drafted) {
      own_->idle = 0;
    } else if (own_->asked && ++own_->idle >= kPatience) {
      own_->rest = std::min(own_->idle - kPatience + 1, kLongestRest);
    }
  }

 private:
  double rate() const {  // tokens a second of late, at least plain decoding's
    const double plain = 1 / costs_->at(1);
    return own_->seconds > 0 ? std::max(plain, own_->tokens / own_->seconds) : plain;
  }

  struct Balance {
    explicit Balance(double credit_seconds) : credit(credit_seconds) {}
    int idle = 0;
    int rest = 0;
    bool asked = false;
    double credit;
    double tokens = 0;
    double seconds = 0;
  };

  std::shared_ptr<Balance> new_balance() const {
    return std::make_shared<Balance>(kCredit * costs_->at(1));
  }

  CostsByContext by_context_;
  CallCosts* costs_;
  Prices prices_;
  int rounds_ = 0;
  Tenants<Balance> balances_;
  std::shared_ptr<Balance> own_;  // of the tenant whose generation runs
};

}  // namespace

Prices::Prices(std::vector<double> added) : seconds(std::move(added)) {
  for (std::size_t n = 0; n + 1 < seconds.size(); ++n) {
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t m = n + 1; m < seconds.size(); ++m) {
      least = std::min(least, (seconds[m] - seconds[n]) / static_cast<double>(m - n));
    }
    marginal.push_back(least);
  }
}

bool Budget::pays(std::size_t drafted, double reach, double found_in) const {
  if (drafted >= most) return false;
  return !prices || reach > rate * (prices->marginal[drafted] + found_in);
}

std::size_t Budget::size(const std::vector<double>& reaches) const {
  const auto longest = std::min(reaches.size(), most);
  if (!prices) return longest;
  double best = 0;
  double gain = 0;
  std::size_t chosen = 0;
  for (std::size_t drafted = 1; drafted <= longest; ++drafted) {
    gain += reaches[drafted - 1];
    const double worth = gain - rate * prices->seconds[drafted];
    if (worth > best) {
      best = worth;
      chosen = drafted;
    }
  }
  return chosen;
}

// Between measured widths costs are taken to be straight, beyond them to rise as they last did, and
// nowhere to fall.
CallCosts::CallCosts(const std::map<std::int64_t, double>& measured) {
  const auto last = std::prev(measured.end());
  double slope = 0;
  if (measured.size() > 1) {
    const auto before = std::prev(last);
    slope = (last->second - before->second) / static_cast<double>(last->first - before->first);
    slope = std::max(slope, 0.0);
  }
  double most = 0;
  for (std::int64_t width = 1; width <= static_cast<std::int64_t>(kLongest) + 1; ++width) {
    const auto above = measured.lower_bound(width);
    double seconds = 0;
    if (above == measured.end()) {
      seconds = last->second + slope * static_cast<double>(width - last->first);
    } else if (above == measured.begin() || above->first == width) {
      seconds = above->second;
    } else {
      const auto below = std::prev(above);
      const double share = static_cast<double>(width - below->first) /
                           static_cast<double>(above->first - below->first);
      seconds = below->second + share * (above->second - below->second);
    }
    most = std::max(most, seconds);
    seconds_.push_back(most);
  }
}

double CallCosts::at(std::size_t width) const {
  return common_ * seconds_[std::min(width, seconds_.size()) - 1];
}

// An outlier counts as a quarter more or less, and little at once.
void CallCosts::observe(std::size_t width, double seconds) {
  if (width > seconds_.size()) return;
  const double ratio = std::clamp(seconds / at(width), 1 / kClip, kClip);
  common_ *= std::pow(ratio, kDrift);                  // the machine is slower, the context longer …
  seconds_[width - 1] *= std::pow(ratio, kOwnDrift);  // … or the measurement was off
}

Prices CallCosts::prices(std::size_t most) const {
  std::vector<double> added;
  for (std::size_t n = 0; n <= most; ++n) {
    added.push_back(n ? std::max(added.back(), at(1 + n)) : at(1));
  }
  const double plain = added.front();
  for (auto& seconds : added) seconds -= plain;
  return Prices(std::move(added));
}

std::unique_ptr<DraftLength> fixed_length(std::size_t draft_tokens) {
  return std::make_unique<FixedLength>(draft_tokens);
}

std::unique_ptr<DraftLength> measured_length(CostsByContext costs) {
  return std::make_unique<MeasuredLength>(std::move(costs));
}

}  // namespace specplug::native
