#include <cstring>

#include "core/element.h"
#include "walk.h"

namespace rope_bench {
namespace {

template <class T>
struct Line {
  using Factor = rope_ext::Compute<T>;
  static Factor broadcast(double factor) { return static_cast<Factor>(factor); }
  static void scale(char* line, Factor factor) {
    T elements[kLineBytes / sizeof(T)];
    std::memcpy(elements, line, kLineBytes);
    for (T& element : elements) rope_ext::store(&element, rope_ext::to_compute(element) * factor);
    std::memcpy(line, elements, kLineBytes);
  }
};

struct ReadWrite {
  static double broadcast(double factor) { return factor; }
  static void scale(char* line, double) {
    for (int64_t offset = 0; offset < kLineBytes; offset += 8) {
      uint64_t word;
      std::memcpy(&word, line + offset, 8);
      asm volatile("" : "+r"(word));
      std::memcpy(line + offset, &word, 8);
    }
  }
};

}  // namespace

Scales scalar() {
  return {walk<Line<rope_ext::float16>>, walk<Line<rope_ext::bfloat16>>, walk<Line<float>>,
          walk<Line<double>>, walk<ReadWrite>};
}

}  // namespace rope_bench
