// Importing rope_ext._C registers the operators; what it exports are build facts and the switch between
// instruction sets. Operators are called through the dispatcher alone.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>
#if defined(ROPE_EXT_CUDA)
#include <cuda_runtime_api.h>
#endif

#include "../cpu/capability.h"

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", rope_ext::cpu::capability, "The instruction set in use.");
  m.def("cpu_capabilities", rope_ext::cpu::capabilities, "Those of this processor, slowest first.");
  m.def("set_cpu_capability", rope_ext::cpu::set_capability, pybind11::arg("name"),
        "Uses another instruction set from the next call on; ValueError if there is none of that name.");
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
#if defined(ROPE_EXT_CUDA)
    info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
#else
    info["cuda"] = pybind11::none();
#endif
    info["compiler"] =
#if defined(__VERSION__)
        __VERSION__;
#else
        "unknown";
#endif
    info["openmp"] =
#if defined(_OPENMP)
        true;
#else
        false;
#endif
    return info;
  });
  // An unknown ROPE_EXT_CPU is refused at import and not in the first call.
  rope_ext::cpu::kernels();
}
