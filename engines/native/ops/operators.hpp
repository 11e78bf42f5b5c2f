// Our operators, for sessions that are opened in C or C++.
#pragma once

#include <onnxruntime_c_api.h>

namespace specplug_ops {

// Whether this CPU runs them; where it does not, sessions run the graphs' own definitions.
bool cpu_is_supported() noexcept;

// Let sessions made with these options run the operators. The status is the caller's to release.
OrtStatus* add_operators(OrtSessionOptions* options, const OrtApi& api);

}  // namespace specplug_ops
