// What of libtorch no C function reaches: freezing a module, a run in inference mode, and giving back memory of GPUs.
//
// A module and a value are what torch-sys makes them: pointers to libtorch's own. No exception crosses the border. A function returns
// null where it worked; else a text from malloc that says what failed, and no result.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/ir/scope.h>

namespace {

using torch::jit::AttributeKind;
using torch::jit::Block;
using torch::jit::Function;
using torch::jit::Graph;
using torch::jit::InlinedCallStack;
using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Node;

// A text that can't be allocated leaves nothing to tell the error with.
char* said(const char* what) {
  const size_t bytes = std::strlen(what) + 1;
  char* text = static_cast<char*>(std::malloc(bytes));
  if (text == nullptr) {
    std::abort();
  }
  std::memcpy(text, what, bytes);
  return text;
}

template <typename Work>
char* guarded(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return said(error.what());
  } catch (...) {
    return said("an exception of an unknown type");
  }
}

// Freezing inlines methods and then frees them, but the nodes that came out of them go on pointing to them: an error that such a node
// raises would read what was freed, to tell where it was. From now on they came out of a function that lives as long as they do.
void point_to(Function* living, Block* block) {
  for (Node* node : block->nodes()) {
    if (const auto inlined = node->callstack()) {
      node->setCallStack(c10::make_intrusive<InlinedCallStack>(living, (*inlined)->source_range()));
    }
    for (Block* inner : node->blocks()) {
      point_to(living, inner);
    }
    for (const auto name : node->attributeNames()) {
      if (node->kindOf(name) == AttributeKind::g) {
        point_to(living, node->g(name)->block());
      } else if (node->kindOf(name) == AttributeKind::gs) {
        for (const std::shared_ptr<Graph>& graph : node->gs(name)) {
          point_to(living, graph->block());
        }
      }
    }
  }
}

} // namespace

extern "C" {

// Makes a module that has its parameters as constants, and folds what follows from them; optimized, it also computes in the layouts of
// oneDNN. The module that it was made of stays as it is.
char* bascule_torch_freeze(const Module* module, bool optimized, Module** frozen) {
  return guarded([&] {
    // Constants that are computed here must be tensors of either mode.
    const at::NoGradGuard no_grad;
    Module made = torch::jit::freeze(*module);
    if (optimized) {
      made = torch::jit::optimize_for_inference(made);
    }
    const auto forward = made.get_method("forward");
    point_to(&forward.function(), forward.graph()->block());
    *frozen = new Module(made);
  });
}

// Calls forward without gradients, and in inference mode where that is asked for.
char* bascule_torch_forward(
    Module* module,
    IValue* const* arguments,
    size_t count,
    bool inference_mode,
    IValue** result) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    std::optional<c10::InferenceMode> inference;
    // One that is made with false would turn gradients on.
    if (inference_mode) {
      inference.emplace();
    }
    std::vector<IValue> values;
    values.reserve(count);
    for (size_t place = 0; place < count; ++place) {
      values.push_back(*arguments[place]);
    }
    *result = new IValue(module->forward(std::move(values)));
  });
}

// Gives back what this process has of GPUs and nothing uses: libtorch keeps it for later. Nothing where it has no GPUs, or none was used.
char* bascule_torch_empty_cache() {
  return guarded([] {
    const auto accelerator = at::accelerator::getAccelerator();
    if (!accelerator.has_value()) {
      return;
    }
    c10::DeviceAllocator* const allocator = c10::getDeviceAllocator(*accelerator);
    if (allocator->initialized()) {
      allocator->emptyCache();
    }
  });
}

} // extern "C"
