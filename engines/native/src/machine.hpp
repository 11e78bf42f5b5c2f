// What this machine is, as the Python package names it.
#pragma once

#include <string>

namespace specplug::native {

std::string cpu_name();
int usable_cores();    // that this process may run on
int physical_cores();  // of these; hardware threads of one core count once

}  // namespace specplug::native
