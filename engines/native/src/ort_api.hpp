// ONNX Runtime's C API: handles that release themselves, statuses as exceptions.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

namespace specplug::native {

// The functions of the library that is loaded. Throws Error(ENGINE) if it is older than our headers.
const OrtApi& ort();

// Throws Error(ENGINE), with what was being done, for a status that is not null; releases it.
void check_ort(OrtStatus* status, const std::string& doing);

#define SPECPLUG_HANDLE(name, release)                                        \
  struct name##Releaser {                                                     \
    void operator()(Ort##name* handle) const { ort().release(handle); }       \
  };                                                                          \
  using name##Handle = std::unique_ptr<Ort##name, name##Releaser>
SPECPLUG_HANDLE(Env, ReleaseEnv);
SPECPLUG_HANDLE(SessionOptions, ReleaseSessionOptions);
SPECPLUG_HANDLE(Session, ReleaseSession);
SPECPLUG_HANDLE(MemoryInfo, ReleaseMemoryInfo);
SPECPLUG_HANDLE(Value, ReleaseValue);
SPECPLUG_HANDLE(IoBinding, ReleaseIoBinding);
SPECPLUG_HANDLE(ThreadingOptions, ReleaseThreadingOptions);
SPECPLUG_HANDLE(TypeInfo, ReleaseTypeInfo);
SPECPLUG_HANDLE(CUDAProviderOptionsV2, ReleaseCUDAProviderOptions);
SPECPLUG_HANDLE(TensorRTProviderOptionsV2, ReleaseTensorRTProviderOptions);
#undef SPECPLUG_HANDLE

// What a function of ONNX Runtime makes, given the function without its last argument.
template <typename Handle, typename Function>
Handle made_by(const std::string& doing, Function function) {
  typename Handle::pointer made = nullptr;
  check_ort(function(&made), doing);
  return Handle(made);
}

// ONNX Runtime's environment; all of a process's are one inside, counted by reference.
class Environment {
 public:
  // pool_threads: make a thread pool for the process, unless there is an environment; 0: none.
  explicit Environment(int pool_threads);
  OrtEnv* get() const { return env_.get(); }
  bool pooled() const { return pooled_; }

 private:
  EnvHandle env_;
  bool pooled_;
};

struct SessionSettings {
  int threads = 1;
  std::vector<std::string> providers;  // none: the CPU
};

// A session over a graph file, its pool the environment's or one of its own.
SessionHandle open_session(const Environment& environment, const std::string& path,
                           const SessionSettings& settings);

// Host memory as a tensor; the memory stays the caller's.
ValueHandle tensor_over(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                        ONNXTensorElementDataType type);

}  // namespace specplug::native
