// A second, smaller engine guesses what the target will probably say.
#pragma once

#include <memory>

#include "engine.hpp"
#include "source.hpp"

namespace specplug::native {

// One call of a draft model a guess, over one cache, chosen as the target chooses its own.
std::unique_ptr<Source> model_source(std::shared_ptr<Engine> engine);

}  // namespace specplug::native
