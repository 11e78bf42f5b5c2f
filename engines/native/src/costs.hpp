// What calls of an engine cost by their width, measured here and now.
#pragma once

#include <cstdint>
#include <map>

#include "engine.hpp"

namespace specplug::native {

// Seconds of a call by width, in less than a second. The engine's cache is written to.
std::map<std::int64_t, double> measure_costs(Engine& engine);

}  // namespace specplug::native
