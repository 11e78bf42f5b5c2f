// An opened bundle: a manifest, validated, over files that match it.
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"

namespace specplug::native {

class Bundle {
 public:
  // Read and check a bundle, but for the weights' hashes, which take as long as loading them: see
  // check_weights. Throws Error(BUNDLE).
  explicit Bundle(std::string folder);

  const Manifest& manifest() const { return manifest_; }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string read(const std::string& name) const;

  // Compare what was left out above with the manifest. May run in another thread.
  void check_weights() const;

  // The likeliest continuations of every token, i32[V, n], row after row; empty if there are none.
  std::vector<std::int32_t> continuations() const;

  // The costs in tuning.json of the target on this machine; empty if there are none. A file that
  // cannot be read or is damaged counts as none, and is named on stderr.
  MeasuredCosts tuned(std::optional<std::int64_t> threads) const;

 private:
  MeasuredCosts read_tuned(std::optional<std::int64_t> threads) const;
  void check_extent(const File& file) const;
  void check_hash(const File& file) const;
  bool weights(const File& file) const;

  std::string folder_;
  Manifest manifest_;
};

}  // namespace specplug::native
