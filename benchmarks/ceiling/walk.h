// The walk is one for all instruction sets; each source includes it under its own target.
#pragma once

#include "scale.h"

namespace rope_bench {
namespace {

// No software prefetch: on one sequential stream it costs 10 to 20 % on Zen 4, in memory and in L3.
template <class Line>
void walk(char* data, int64_t lines, double factor) {
  const auto broadcast = Line::broadcast(factor);
#pragma GCC unroll 4
  for (int64_t line = 0; line < lines; ++line) {
    Line::scale(data + line * kLineBytes, broadcast);
  }
}

}  // namespace
}  // namespace rope_bench
