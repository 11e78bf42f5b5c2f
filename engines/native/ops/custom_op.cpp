// The operator RowQuantizedProduct of the domain "specplug", for ONNX Runtime.
//
// A graph that uses it carries its definition as a function of ordinary nodes, so that it runs,
// slower, without this one.

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "operators.hpp"
#include "row_product.hpp"

namespace {

using specplug_ops::Rows;
using specplug_ops::Weight;

enum Input : std::size_t { kActivations, kWeight, kScales, kInputs };

// A status that the caller has to hand on; holds none if all is well.
class Failure {
 public:
  Failure(const OrtApi& api) : api_(api) {}
  ~Failure() { api_.ReleaseStatus(status_); }
  Failure(const Failure&) = delete;
  Failure& operator=(const Failure&) = delete;

  // Whether a call failed; of several failures the first is kept.
  bool operator()(OrtStatus* status) {
    if (status_ == nullptr) status_ = status;
    else api_.ReleaseStatus(status);
    return status_ != nullptr;
  }
  OrtStatus* release() { return std::exchange(status_, nullptr); }

 private:
  const OrtApi& api_;
  OrtStatus* status_ = nullptr;
};

std::vector<std::int64_t> shape_of(const OrtApi& api, const OrtValue* value, Failure& failed) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  std::vector<std::int64_t> shape;
  std::size_t dimensions = 0;
  if (failed(api.GetTensorTypeAndShape(value, &info))) return shape;
  if (!failed(api.GetDimensionsCount(info, &dimensions))) {
    shape.resize(dimensions);
    failed(api.GetDimensions(info, shape.data(), dimensions));
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  return shape;
}

template <typename T>
T* data_of(const OrtApi& api, const OrtValue* value, Failure& failed) {
  void* data = nullptr;
  failed(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return static_cast<T*>(data);
}

// One node: its weight, which has to be constant.
class Kernel {
 public:
  Kernel(const OrtApi& api, Weight weight) : api_(api), weight_(std::move(weight)) {}

  OrtStatus* no_memory() const { return api_.CreateStatus(ORT_FAIL, "RowQuantizedProduct: no memory"); }

  OrtStatus* compute(OrtKernelContext* context) {
    Failure failed(api_);
    const OrtValue* given = nullptr;
    if (failed(api_.KernelContext_GetInput(context, kActivations, &given))) return failed.release();
    std::vector<std::int64_t> shape = shape_of(api_, given, failed);
    const auto* x = data_of<float>(api_, given, failed);
    if (failed(nullptr)) return failed.release();
    if (shape.empty() || static_cast<std::size_t>(shape.back()) != weight_.depth())
      return api_.CreateStatus(ORT_INVALID_ARGUMENT, "RowQuantizedProduct: the rows of x and w differ in length");
    shape.back() = static_cast<std::int64_t>(weight_.columns());
    std::size_t count = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= static_cast<std::size_t>(shape[i]);
    OrtValue* made = nullptr;
    if (failed(api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &made))) return failed.release();
    auto* y = data_of<float>(api_, made, failed);
    if (failed(nullptr) || count == 0) return failed.release();

    // Each thread that computes keeps its rows' memory: calls allocate nothing once it is there.
    thread_local std::vector<std::uint8_t> values;
    thread_local std::vector<float> peaks;
    const std::size_t stride = Rows::stride_for(weight_.depth());
    if (values.size() < count * stride) values.resize(count * stride);
    if (peaks.size() < count) peaks.resize(count);
    Work work{x, y, {values.data(), peaks.data(), count, stride}, weight_};
    if (count < 2 * kQuantized) {
      specplug_ops::quantize(x, weight_.depth(), work.rows, 0, count);
    } else {
      failed(api_.KernelContext_ParallelFor(context, quantize_piece, (count + kQuantized - 1) / kQuantized, 0, &work));
    }
    if (!failed(nullptr)) failed(api_.KernelContext_ParallelFor(context, multiply_panel, weight_.panels(), 0, &work));
    return failed.release();
  }

 private:
  static constexpr std::size_t kQuantized = 16;  // rows that are worth handing to a thread

  struct Work {
    const float* x;
    float* y;
    Rows rows;
    const Weight& weight;
  };

  static void quantize_piece(void* data, std::size_t piece) {
    const Work& work = *static_cast<Work*>(data);
    const std::size_t first = piece * kQuantized;
    specplug_ops::quantize(work.x, work.weight.depth(), work.rows, first, std::min(first + kQuantized, work.rows.count));
  }

  static void multiply_panel(void* data, std::size_t panel) {
    const Work& work = *static_cast<Work*>(data);
    specplug_ops::multiply(work.rows, work.weight, panel, work.y);
  }

  const OrtApi& api_;
  Weight weight_;
};

const OrtValue* constant_input(const OrtApi& api, const OrtKernelInfo* info, Input index, Failure& failed) {
  int constant = 0;
  const OrtValue* value = nullptr;
  if (failed(api.KernelInfoGetConstantInput_tensor(info, index, &constant, &value))) return nullptr;
  if (constant == 0) failed(api.CreateStatus(ORT_INVALID_GRAPH, "RowQuantizedProduct: weight and scales have to be initializers"));
  return constant == 0 ? nullptr : value;
}

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  Failure failed(*api);
  const OrtValue* weight = constant_input(*api, info, kWeight, failed);
  const OrtValue* scales = failed(nullptr) ? nullptr : constant_input(*api, info, kScales, failed);
  if (failed(nullptr)) return failed.release();
  const std::vector<std::int64_t> shape = shape_of(*api, weight, failed), each = shape_of(*api, scales, failed);
  const auto* values = data_of<std::int8_t>(*api, weight, failed);
  const auto* columns = data_of<float>(*api, scales, failed);
  if (failed(nullptr)) return failed.release();
  if (shape.size() != 2 || each.size() != 1 || each[0] != shape[1] ||
      static_cast<std::size_t>(shape[0]) > specplug_ops::kLongestDepth)
    return api->CreateStatus(ORT_INVALID_GRAPH, "RowQuantizedProduct: needs a weight [K, N], K at most 65000, and scales [N]");
  try {
    *kernel = new Kernel(*api, Weight(values, static_cast<std::size_t>(shape[0]), static_cast<std::size_t>(shape[1]), columns));
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "RowQuantizedProduct: no memory");
  }
  return nullptr;
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  auto* node = static_cast<Kernel*>(kernel);
  try {
    return node->compute(context);
  } catch (const std::bad_alloc&) {
    return node->no_memory();
  }
}

OrtCustomOp describe() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return "RowQuantizedProduct"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return kInputs; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t index) {
    return index == kWeight ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace

namespace specplug_ops {

bool cpu_is_supported() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

OrtStatus* add_operators(OrtSessionOptions* options, const OrtApi& api) {
  // One of each for all sessions, which refer to them for as long as they live: never released.
  static const OrtCustomOp op = describe();
  static std::mutex mutex;
  static OrtCustomOpDomain* domain = nullptr;
  Failure failed(api);
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (failed(api.CreateCustomOpDomain("specplug", &made))) return failed.release();
    if (failed(api.CustomOpDomain_Add(made, &op))) {
      api.ReleaseCustomOpDomain(made);
      return failed.release();
    }
    domain = made;
  }
  failed(api.AddCustomOpDomain(options, domain));
  return failed.release();
}

}  // namespace specplug_ops
