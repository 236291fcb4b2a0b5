// First include of a source that compiles for an instruction set by `#pragma GCC target`: everything
// that must not be compiled for it, since the linker may hand any copy of an inline function to others.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define ROPE_X86 1

#include <cpuid.h>
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#endif
