// Time that only goes forward.
#pragma once

#include <chrono>

namespace specplug::native {

inline double now() {  // in seconds
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace specplug::native
