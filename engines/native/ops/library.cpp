// The shared library that ONNX Runtime loads by name: RegisterCustomOps is all that it needs.

#include "operators.hpp"

#if defined(_WIN32)
#define SPECPLUG_OPS_EXPORT __declspec(dllexport)
#else
#define SPECPLUG_OPS_EXPORT __attribute__((visibility("default")))
#endif

extern "C" {

// 1 where the operators run on this CPU; where they do not, do not register them.
SPECPLUG_OPS_EXPORT int specplug_ops_supported() { return specplug_ops::cpu_is_supported() ? 1 : 0; }

SPECPLUG_OPS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;  // an older ONNX Runtime: its graphs run without us
  return specplug_ops::add_operators(options, *api);
}

}  // extern "C"
