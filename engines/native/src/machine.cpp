#include "machine.hpp"

#include <fstream>
#include <set>
#include <thread>

#include "error.hpp"

#ifdef __linux__
#include <sched.h>
#include <sys/utsname.h>
#endif

namespace specplug::native {
namespace {

std::set<int> usable() {
  std::set<int> found;
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) found.insert(cpu);
    }
  }
#endif
  return found;
}

}  // namespace

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string name;
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(':') != std::string::npos) {
      name = line.substr(line.find(':') + 1);
    }
  }
  const auto first = name.find_first_not_of(" \t");
  if (first != std::string::npos) return name.substr(first, name.find_last_not_of(" \t") + 1 - first);
#ifdef __linux__
  utsname system{};
  if (uname(&system) == 0) return system.machine;
#endif
  return "";
}

int usable_cores() {
  const auto found = usable();
  return found.empty() ? static_cast<int>(std::thread::hardware_concurrency())
                       : static_cast<int>(found.size());
}

int physical_cores() {
  std::set<std::string> cores;
  for (const int cpu : usable()) {
    std::ifstream siblings(
        text_of("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list"));
    std::string list;
    cores.insert(std::getline(siblings, list) ? list : std::to_string(cpu));
  }
  return cores.empty() ? usable_cores() : static_cast<int>(cores.size());
}

}  // namespace specplug::native
