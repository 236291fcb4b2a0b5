#include "capability.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "x86.h"

namespace rope_ext::cpu {
namespace {

struct Capability {
  const char* name;
  const Kernels* kernels;
  bool available;
};

#if defined(ROPE_X86)
// Clang's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const std::vector<Capability>& all() {
  static const std::vector<Capability> list = [] {
    std::vector<Capability> found = {{"scalar", &scalar_kernels, true}};
#if defined(ROPE_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    found.push_back({"avx2", &avx2_kernels, avx2});
    found.push_back({"avx512", &avx512_kernels, avx512});
    found.push_back({"avx512_bf16", &avx512_bf16_kernels, avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
    return found;
  }();
  return list;
}

const Capability& find(const std::string& name, const char* subject) {
  std::string available;
  for (const Capability& candidate : all()) {
    if (candidate.available && candidate.name == name) return candidate;
    if (candidate.available) available += (available.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::invalid_argument(std::string(subject) + " must be an instruction set of this processor (" +
                              available + "), got " + name);
}

const Capability& initial() {
  if (const char* forced = std::getenv("ROPE_EXT_CPU"); forced && *forced)
    return find(forced, "ROPE_EXT_CPU");
  return *std::find_if(all().rbegin(), all().rend(), [](const Capability& c) { return c.available; });
}

std::atomic<const Capability*>& selected() {
  static std::atomic<const Capability*> current = &initial();
  return current;
}

}  // namespace

const Kernels& kernels() { return *selected().load(std::memory_order_relaxed)->kernels; }

void set_capability(const std::string& name) { selected() = &find(name, "name"); }

std::string capability() { return selected().load()->name; }

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const Capability& candidate : all()) {
    if (candidate.available) names.emplace_back(candidate.name);
  }
  return names;
}

}  // namespace rope_ext::cpu
