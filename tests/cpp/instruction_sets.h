// Runs a test once for every instruction set of the build; those that this processor lacks are skipped
// by name.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/capability.h"

namespace rope_ext::test {

class OnInstructionSet : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::vector<std::string> available = cpu::capabilities();
    if (std::find(available.begin(), available.end(), GetParam()) == available.end())
      GTEST_SKIP() << "this processor does not have " << GetParam() << "; it has "
                   << testing::PrintToString(available);
    cpu::set_capability(GetParam());
  }
};

inline const auto kInstructionSets = testing::Values("scalar", "avx2", "avx512", "avx512_bf16");

inline std::string instruction_set_name(const testing::TestParamInfo<const char*>& info) {
  return info.param;
}

}  // namespace rope_ext::test
