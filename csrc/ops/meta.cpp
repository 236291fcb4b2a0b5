// The Meta key: shapes without data, for fake tensors, tracing and export. Sizes may be symbols.
#include "on_device.h"

namespace rope_ext::ops {
namespace {

void check(const Call& call, const Tensor*) { check_symbolic(call); }

}  // namespace
}  // namespace rope_ext::ops

TORCH_LIBRARY_IMPL(rope, Meta, m) { rope_ext::ops::OnDevice<rope_ext::ops::check>::implement(m); }
