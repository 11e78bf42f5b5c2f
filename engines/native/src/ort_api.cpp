#include "ort_api.hpp"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "error.hpp"
#ifdef SPECPLUG_HAS_OPERATORS
#include "../ops/operators.hpp"
#endif

namespace specplug::native {
namespace {

void add_provider(OrtSessionOptions* options, const std::string& provider) {
  const auto doing = text_of("adding the provider ", provider);
  if (provider == "CPUExecutionProvider") return;  // there always, and last
  if (provider == "CUDAExecutionProvider") {
    const auto cuda = made_by<CUDAProviderOptionsV2Handle>(doing, ort().CreateCUDAProviderOptions);
    check_ort(ort().SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda.get()), doing);
  } else if (provider == "TensorrtExecutionProvider") {
    const auto tensorrt =
        made_by<TensorRTProviderOptionsV2Handle>(doing, ort().CreateTensorRTProviderOptions);
    check_ort(ort().SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt.get()),
              doing);
  } else {
    constexpr std::string_view suffix = "ExecutionProvider";  // which this function does without
    auto name = provider;
    if (name.size() > suffix.size() && name.rfind(suffix) == name.size() - suffix.size()) {
      name.resize(name.size() - suffix.size());
    }
    check_ort(ort().SessionOptionsAppendExecutionProvider(options, name.c_str(), nullptr, nullptr, 0),
              doing);
  }
}

// Faster than the graphs' own definitions of them, and bit for bit the same; on the CPU alone.
void add_operators([[maybe_unused]] OrtSessionOptions* options,
                   [[maybe_unused]] const SessionSettings& settings,
                   [[maybe_unused]] const std::string& doing) {
#ifdef SPECPLUG_HAS_OPERATORS
  for (const auto& provider : settings.providers) {
    if (provider != "CPUExecutionProvider") return;
  }
  if (specplug_ops::cpu_is_supported()) check_ort(specplug_ops::add_operators(options, ort()), doing);
#endif
}

SessionHandle try_session(const Environment& environment, const std::string& path,
                          const SessionSettings& settings, bool own_pool) {
  const auto doing = text_of("loading ", std::filesystem::path(path).filename().string());
  const auto options = made_by<SessionOptionsHandle>(doing, ort().CreateSessionOptions);
  if (own_pool) {
    check_ort(ort().SetIntraOpNumThreads(options.get(), settings.threads), doing);
  } else {
    check_ort(ort().DisablePerSessionThreads(options.get()), doing);
  }
  // Of products that are fused from DequantizeLinear: activations in int8, as in ours.
  check_ort(ort().AddSessionConfigEntry(options.get(), "session.qdq_matmulnbits_accuracy_level", "4"),
            doing);
  check_ort(ort().SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_ERROR), doing);
  for (const auto& provider : settings.providers) add_provider(options.get(), provider);
  add_operators(options.get(), settings, doing);
  return made_by<SessionHandle>(doing, [&](OrtSession** made) {
    return ort().CreateSession(environment.get(), path.c_str(), options.get(), made);
  });
}

}  // namespace

const OrtApi& ort() {
  static const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!api) {
    fail(SPECPLUG_ERROR_ENGINE, "ONNX Runtime ", OrtGetApiBase()->GetVersionString(),
         " is too old: need 1.", ORT_API_VERSION, " or newer");
  }
  return *api;
}

void check_ort(OrtStatus* status, const std::string& doing) {
  if (!status) return;
  const std::string message = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  fail(SPECPLUG_ERROR_ENGINE, "ONNX Runtime failed ", doing, ": ", message);
}

namespace {

// ONNX Runtime (1.29 and newer) sends usage events from its first environment on unless this is set
// before. Whoever wants that sets the variable to 0.
void keep_to_this_machine() {
#if !defined(_WIN32)
  static const int done = ::setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);
  static_cast<void>(done);
#endif
}

}  // namespace

Environment::Environment(int pool_threads) : pooled_(pool_threads > 0) {
  keep_to_this_machine();
  if (!pooled_) {
    env_ = made_by<EnvHandle>("starting", [](OrtEnv** made) {
      return ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "specplug", made);
    });
    return;
  }
  const auto threading =
      made_by<ThreadingOptionsHandle>("making threads", ort().CreateThreadingOptions);
  check_ort(ort().SetGlobalIntraOpNumThreads(threading.get(), pool_threads), "making threads");
  check_ort(ort().SetGlobalInterOpNumThreads(threading.get(), 1), "making threads");
  env_ = made_by<EnvHandle>("starting", [&](OrtEnv** made) {
    return ort().CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_ERROR, "specplug",
                                                threading.get(), made);
  });
}

SessionHandle open_session(const Environment& environment, const std::string& path,
                           const SessionSettings& settings) {
  const bool own_pool = !environment.pooled();
  try {
    return try_session(environment, path, settings, own_pool);
  } catch (const Error& error) {
    // The process has an environment already, of the other kind, and ONNX Runtime keeps to it.
    if (!std::strstr(error.what(), "lobal thread") && !std::strstr(error.what(), "hreadpools")) throw;
    return try_session(environment, path, settings, !own_pool);
  }
}

ValueHandle tensor_over(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                        ONNXTensorElementDataType type) {
  static const auto host = made_by<MemoryInfoHandle>("describing memory", [](OrtMemoryInfo** made) {
    return ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, made);
  });
  return made_by<ValueHandle>("binding memory", [&](OrtValue** made) {
    return ort().CreateTensorWithDataAsOrtValue(host.get(), data, bytes, shape.data(), shape.size(),
                                                type, made);
  });
}

}  // namespace specplug::native
