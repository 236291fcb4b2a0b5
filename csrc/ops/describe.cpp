#include "describe.h"

#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string_view>
#include <type_traits>

#include "overlap.h"

namespace rope_ext::ops {
namespace {

// Rules are written once and hold for sizes that are numbers and for sizes that are symbols: there, a
// failing rule raises too, and one that cannot be decided becomes a guard or a run-time assertion.
bool equal(int64_t a, int64_t b) { return a == b; }
bool equal(const c10::SymInt& a, const c10::SymInt& b) { return a.sym_eq(b).expect_true(__FILE__, __LINE__); }
bool at_most(int64_t a, int64_t b) { return a <= b; }
bool at_most(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_le(b).expect_true(__FILE__, __LINE__);
}
bool one_or(int64_t a, int64_t b) { return a == 1 || a == b; }
bool one_or(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(1).sym_or(a.sym_eq(b)).expect_true(__FILE__, __LINE__);
}

template <class Int>
c10::ArrayRef<Int> sizes_of(const Tensor& tensor) {
  if constexpr (std::is_same_v<Int, int64_t>) {
    return tensor.sizes();
  } else {
    return tensor.sym_sizes();
  }
}

// What a tensor's sizes mean, whichever way it lies.
template <class Int>
struct Layout {
  int64_t leading;  // number of leading dimensions
  Int tokens, heads, head_dim;
};

template <class Int>
struct Shape {
  Layout<Int> query, key;
  Int rotated_heads;  // of the query
  Int pairs;
  bool per_head;    // the angles have a head axis
  Int table_heads;  // of that axis, 1 without it
  bool axis;        // frequencies, and so positions, have an axis of axes
  Int axes;         // of that axis, 1 without it
};

bool rotatable(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble;
}

void check_flags(const Call& call) {
  TORCH_CHECK_VALUE(call.flags.seq_dim == -3 || call.flags.seq_dim == -2,
                    "seq_dim must be -3 (..., S, H, D) or -2 (..., H, S, D), got ", call.flags.seq_dim);
  if (call.flags.head_dim) {
    TORCH_CHECK_VALUE(*call.flags.head_dim > 0, "head_dim must be positive, got ", *call.flags.head_dim);
    TORCH_CHECK_VALUE(call.flags.seq_dim == -3,
                      "head_dim needs seq_dim=-3, got seq_dim=", call.flags.seq_dim);
  }
}

// As Python writes it.
std::string_view name_of(at::ScalarType dtype) { return c10::getDtypeNames(dtype).first; }

void check_dtypes_of_tables(const Call& call) {
  const auto dtype = call.query.scalar_type(), table = call.cos->scalar_type();
  TORCH_CHECK_TYPE(table == at::kFloat || table == at::kDouble || table == dtype,
                   "cos must be float32, float64 or of ", call.query_name, "'s dtype (", name_of(dtype),
                   "), got ", name_of(table));
  TORCH_CHECK_TYPE(call.sin->scalar_type() == table, "sin must have cos's dtype (", name_of(table), "), got ",
                   name_of(call.sin->scalar_type()));
  if (!call.positions) return;
  const auto positions = call.positions->scalar_type();
  TORCH_CHECK_TYPE(positions == at::kLong || positions == at::kInt, "positions must be int32 or int64, got ",
                   name_of(positions));
}

void check_dtypes_of_frequencies(const Call& call) {
  const auto frequencies = call.frequencies->scalar_type();
  TORCH_CHECK_TYPE(frequencies == at::kFloat || frequencies == at::kDouble || frequencies == at::kLong,
                   "frequencies must be float32, float64 or int64 (turns), got ", name_of(frequencies));
  if (!call.positions) return;
  const auto positions = call.positions->scalar_type();
  const bool floating = positions == at::kFloat || positions == at::kDouble;
  TORCH_CHECK_TYPE(floating || positions == at::kLong || positions == at::kInt,
                   "positions must be int32, int64, float32 or float64, got ", name_of(positions));
  TORCH_CHECK_TYPE(!floating || frequencies != at::kLong,
                   "positions must be int32 or int64 with frequencies in turns (int64), got ",
                   name_of(positions));
}

void check_dtypes(const Call& call) {
  const auto dtype = call.query.scalar_type();
  TORCH_CHECK_TYPE(rotatable(dtype), call.query_name, " must be float16, bfloat16, float32 or float64, got ",
                   name_of(dtype));
  call.frequencies ? check_dtypes_of_frequencies(call) : check_dtypes_of_tables(call);
  if (call.key) {
    TORCH_CHECK_TYPE(call.key->scalar_type() == dtype, "key must have query's dtype (", name_of(dtype),
                     "), got ", name_of(call.key->scalar_type()));
  }
}

void check_device(const Call& call, const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == call.query.device(), name, " must be on ", call.query_name,
                    "'s device (", call.query.device(), "), got ", tensor.device());
}

template <class Int>
Layout<Int> layout_of(const Call& call, const Tensor& tensor, const char* name) {
  const auto sizes = sizes_of<Int>(tensor);
  const int64_t dims = tensor.dim();
  if (call.flags.head_dim) {
    TORCH_CHECK_VALUE(dims >= 2, name, " must have at least 2 dimensions (..., S, H * D) with head_dim, got ",
                      dims);
    const Int columns = sizes[dims - 1], head_dim = *call.flags.head_dim;
    TORCH_CHECK_VALUE(equal(columns % head_dim, Int(0)), name,
                      " must have a last dimension divisible by head_dim (", head_dim, "), got ", columns);
    return {dims - 2, sizes[dims - 2], columns / head_dim, head_dim};
  }
  TORCH_CHECK_VALUE(dims >= 3, name, " must have at least 3 dimensions (tokens, heads, head_dim), got ",
                    dims);
  return {dims - 3, sizes[dims + call.flags.seq_dim], sizes[dims - 5 - call.flags.seq_dim], sizes[dims - 1]};
}

// The dimensions of `tensor` before its last `own` ones, aligned to the right, broadcast to the query's.
template <class Int>
void check_broadcast(const Call& call, int64_t leading, const Tensor& tensor, int64_t own, const char* name) {
  const auto sizes = sizes_of<Int>(tensor), query = sizes_of<Int>(call.query);
  const int64_t dims = tensor.dim() - own;
  for (int64_t d = 0; d < dims; ++d) {
    const Int& wanted = query[leading - dims + d];
    TORCH_CHECK_VALUE(one_or(sizes[d], wanted), name, " must broadcast to ", call.query_name,
                      "'s leading dimensions (", wanted, " in this place), got ", sizes[d], " in shape ",
                      sizes);
  }
}

template <class Int>
void check_key(const Call& call, const Shape<Int>& shape) {
  const Layout<Int>&query = shape.query, &key = shape.key;
  TORCH_CHECK_VALUE(key.leading == query.leading, "key must have as many dimensions as query (",
                    call.query.dim(), "), got ", call.key->dim());
  const auto query_sizes = sizes_of<Int>(call.query), key_sizes = sizes_of<Int>(*call.key);
  for (int64_t d = 0; d < query.leading; ++d) {
    TORCH_CHECK_VALUE(equal(key_sizes[d], query_sizes[d]), "key must have query's leading dimensions, ",
                      query_sizes[d], " in place ", d, ", got ", key_sizes[d]);
  }
  TORCH_CHECK_VALUE(equal(key.tokens, query.tokens), "key must have query's tokens (", query.tokens,
                    "), got ", key.tokens);
  TORCH_CHECK_VALUE(equal(key.head_dim, query.head_dim), "key must have query's head_dim (", query.head_dim,
                    "), got ", key.head_dim);
  TORCH_CHECK_VALUE(one_or(shape.table_heads, key.heads), "key must have the ", shape.table_heads,
                    " heads of angles with a head axis, got ", key.heads);
}

template <class Int>
void check_pairs(const Call& call, Shape<Int>& shape, const Tensor& angles, const char* name) {
  const Int &head_dim = shape.query.head_dim, pairs = sizes_of<Int>(angles)[angles.dim() - 1];
  TORCH_CHECK_VALUE(call.flags.start >= 0 && at_most(Int(call.flags.start), head_dim),
                    "start must lie between 0 and head_dim (", head_dim, "), got ", call.flags.start);
  TORCH_CHECK_VALUE(at_most(pairs * 2 + call.flags.start, head_dim), name, " must have at most ",
                    (head_dim - call.flags.start) / 2, " columns (rotary_dim / 2, with head_dim ", head_dim,
                    " and start ", call.flags.start, "), got ", pairs);
  shape.pairs = pairs;
}

template <class Int>
void check_table(const Call& call, Shape<Int>& shape) {
  const Layout<Int>& query = shape.query;
  const auto sizes = sizes_of<Int>(*call.cos), sin_sizes = sizes_of<Int>(*call.sin);
  const int64_t dims = call.cos->dim();
  TORCH_CHECK_VALUE(call.sin->dim() == dims, "sin must have cos's shape ", sizes, ", got ", sin_sizes);
  for (int64_t d = 0; d < dims; ++d)
    TORCH_CHECK_VALUE(equal(sin_sizes[d], sizes[d]), "sin must have cos's shape ", sizes, ", got ",
                      sin_sizes);
  TORCH_CHECK_VALUE(dims >= 2 && dims <= query.leading + 3,
                    "cos must have 2 dimensions (rows, rotary_dim / 2), or up to ", query.leading + 3,
                    " for this ", call.query_name, ", got ", dims);
  check_pairs<Int>(call, shape, *call.cos, "cos");
  if (call.positions) {
    TORCH_CHECK_VALUE(dims == 2, "cos must have 2 dimensions (rows, rotary_dim / 2) with positions, got ",
                      dims);
    return;
  }
  if (dims == 2) {
    TORCH_CHECK_VALUE(at_most(query.tokens, sizes[0]), "cos must have at least ", query.tokens,
                      " rows (one a token), got ", sizes[0]);
    return;
  }
  shape.per_head = dims == query.leading + 3;
  const int64_t token_dim = shape.per_head ? dims + call.flags.seq_dim : dims - 2;
  TORCH_CHECK_VALUE(equal(sizes[token_dim], query.tokens), "cos must have ", query.tokens,
                    " rows (one a token) in dimension ", token_dim, ", got ", sizes[token_dim]);
  if (shape.per_head) {
    shape.table_heads = sizes[dims - 5 - call.flags.seq_dim];
    TORCH_CHECK_VALUE(one_or(shape.table_heads, shape.rotated_heads), "cos must have 1 or ",
                      shape.rotated_heads, " heads, got ", shape.table_heads);
  }
  check_broadcast<Int>(call, query.leading, *call.cos, shape.per_head ? 3 : 2, "cos");
}

template <class Int>
void check_frequencies(const Call& call, Shape<Int>& shape) {
  const auto sizes = sizes_of<Int>(*call.frequencies);
  const int64_t dims = call.frequencies->dim();
  TORCH_CHECK_VALUE(dims >= 1 && dims <= 3,
                    "frequencies must have 1 to 3 dimensions, (P), (A, P) or (A, H, P), got ", dims);
  check_pairs<Int>(call, shape, *call.frequencies, "frequencies");
  shape.axis = dims > 1;
  shape.axes = shape.axis ? sizes[0] : Int(1);
  TORCH_CHECK_VALUE(at_most(Int(1), shape.axes) && at_most(shape.axes, Int(kMaxAxes)),
                    "frequencies must have 1 to ", kMaxAxes, " axes, got ", shape.axes);
  shape.per_head = dims == 3;
  if (shape.per_head) {
    shape.table_heads = sizes[1];
    TORCH_CHECK_VALUE(one_or(shape.table_heads, shape.rotated_heads), "frequencies must have 1 or ",
                      shape.rotated_heads, " heads, got ", shape.table_heads);
  }
}

template <class Int>
void check_positions(const Call& call, const Shape<Int>& shape) {
  const auto sizes = sizes_of<Int>(*call.positions);
  const int64_t own = shape.axis ? 2 : 1, dims = call.positions->dim(), most = shape.query.leading + own;
  TORCH_CHECK_VALUE(dims >= own && dims <= most, "positions must have ", own, " to ", most,
                    " dimensions (...", shape.axis ? ", S, A" : ", S", "), got ", dims);
  TORCH_CHECK_VALUE(equal(sizes[dims - own], shape.query.tokens), "positions must have one entry a token (",
                    shape.query.tokens, "), got ", sizes[dims - own]);
  if (shape.axis)
    TORCH_CHECK_VALUE(equal(sizes[dims - 1], shape.axes), "positions must have the ", shape.axes,
                      " axes of frequencies in their last dimension, got ", sizes[dims - 1]);
  check_broadcast<Int>(call, shape.query.leading, *call.positions, own, "positions");
}

template <class Int>
Shape<Int> check(const Call& call) {
  check_flags(call);
  check_dtypes(call);
  if (call.cos) check_device(call, *call.cos, "cos");
  if (call.sin) check_device(call, *call.sin, "sin");
  if (call.frequencies) check_device(call, *call.frequencies, "frequencies");
  if (call.positions) check_device(call, *call.positions, "positions");
  if (call.key) check_device(call, *call.key, "key");

  Shape<Int> shape{.query = layout_of<Int>(call, call.query, call.query_name), .table_heads = 1, .axes = 1};
  shape.rotated_heads = shape.query.heads;
  if (call.flags.num_heads) {
    TORCH_CHECK_VALUE(*call.flags.num_heads >= 0 && at_most(Int(*call.flags.num_heads), shape.query.heads),
                      "num_heads must lie between 0 and the ", shape.query.heads, " heads of ",
                      call.query_name, ", got ", *call.flags.num_heads);
    shape.rotated_heads = *call.flags.num_heads;
  }
  call.frequencies ? check_frequencies<Int>(call, shape) : check_table<Int>(call, shape);
  if (call.positions) check_positions<Int>(call, shape);
  if (call.key) {
    shape.key = layout_of<Int>(call, *call.key, "key");
    check_key<Int>(call, shape);
  }
  return shape;
}

Element element_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf: return Element::float16;
    case at::kBFloat16: return Element::bfloat16;
    case at::kFloat: return Element::float32;
    default: return Element::float64;
  }
}

Strides strides_of(const Call& call, const Tensor& tensor) {
  const auto strides = tensor.strides();
  const int64_t dims = tensor.dim(), element = strides[dims - 1];
  if (call.flags.head_dim)
    return {.token = strides[dims - 2], .head = *call.flags.head_dim * element, .element = element};
  return {.token = strides[dims + call.flags.seq_dim],
          .head = strides[dims - 5 - call.flags.seq_dim],
          .element = element};
}

View view_of(const Call& call, const Tensor& tensor, const Tensor* target, int64_t heads,
             int64_t kept_heads) {
  const int64_t bytes = tensor.element_size();
  const Strides from = strides_of(call, tensor), to = target ? strides_of(call, *target) : from;
  // Only what is written may be materialized for writing.
  char* const write = static_cast<char*>((target ? *target : tensor).mutable_data_ptr());
  const char* const read = target ? static_cast<const char*>(tensor.const_data_ptr()) : write;
  return {.source = read + call.flags.start * from.element * bytes,
          .target = write + call.flags.start * to.element * bytes,
          .from = from,
          .to = to,
          .heads = heads,
          .kept_heads = kept_heads};
}

Table table_of(const Call& call, const Tensor& tensor, bool per_head) {
  const auto strides = tensor.strides();
  const int64_t dims = tensor.dim();
  Table table{.data = tensor.const_data_ptr(), .strides = {.head = 0, .element = strides[dims - 1]}};
  if (per_head) {
    const int64_t head_dim = dims - 5 - call.flags.seq_dim;
    table.strides.token = strides[dims + call.flags.seq_dim];
    table.strides.head = tensor.size(head_dim) == 1 ? 0 : strides[head_dim];
  } else {
    table.strides.token = strides[dims - 2];
  }
  return table;
}

// Of an empty tensor, whose null pointer would say that there are tables.
constexpr int64_t kNoFrequencies = 0;

Frequencies frequencies_of(const Call& call) {
  const Tensor& tensor = *call.frequencies;
  const auto strides = tensor.strides();
  const int64_t dims = tensor.dim();
  const bool fixed = tensor.scalar_type() == at::kLong;
  return {.data = tensor.numel() == 0 ? &kNoFrequencies : tensor.const_data_ptr(),
          .fixed = fixed,
          .element = fixed ? Element::float64 : element_of(tensor.scalar_type()),
          .axes = dims > 1 ? tensor.size(0) : 1,
          .axis = dims > 1 ? strides[0] : 0,
          .head = dims == 3 && tensor.size(1) > 1 ? strides[1] : 0,
          .pair = strides[dims - 1],
          .scale = call.scale};
}

Positions positions_of(const Tensor& tensor, bool axis) {
  const auto strides = tensor.strides();
  const auto dtype = tensor.scalar_type();
  return {.data = tensor.const_data_ptr(),
          .wide = dtype == at::kLong || dtype == at::kDouble,
          .token = strides[tensor.dim() - (axis ? 2 : 1)],
          .axis = axis ? strides.back() : 0,
          .floating = dtype == at::kFloat || dtype == at::kDouble};
}

// The leading dimensions of a problem, merged where every tensor can be walked as if two were one.
class Leading {
 public:
  Leading(Problem& problem, const Call& call, int64_t dims)
      : problem_(problem), name_(call.query_name), sizes_(call.query.sizes().slice(0, dims)) {}

  // `own`: dimensions of the tensor that do not lead.
  void add(const Tensor& tensor, int64_t own, int64_t* merged) {
    const size_t dims = tensor.dim() - own;
    operands_[count_++] = {tensor.sizes().slice(0, dims), tensor.strides().slice(0, dims), merged};
  }

  void merge() {
    problem_.batches = 1;
    for (const int64_t size : sizes_) problem_.batches *= size;
    if (problem_.batches == 0) {
      problem_.batch_dims = 1;
      problem_.batch_sizes[0] = 0;
      return;
    }
    for (size_t d = 0; d < sizes_.size(); ++d) {
      if (sizes_[d] != 1) append(d);
    }
  }

 private:
  struct Operand {
    c10::IntArrayRef sizes, strides;
    int64_t* merged;
  };

  int64_t stride(const Operand& operand, size_t d) const {
    const size_t missing = sizes_.size() - operand.sizes.size();
    return d < missing || operand.sizes[d - missing] == 1 ? 0 : operand.strides[d - missing];
  }

  void append(size_t d) {
    const int last = problem_.batch_dims - 1;
    bool mergeable = last >= 0;
    for (int i = 0; i < count_ && mergeable; ++i)
      mergeable = operands_[i].merged[last] == sizes_[d] * stride(operands_[i], d);
    if (mergeable) {
      problem_.batch_sizes[last] *= sizes_[d];
    } else {
      TORCH_CHECK_VALUE(problem_.batch_dims < kBatchDims, name_, " must have at most ", kBatchDims,
                        " leading dimensions that cannot be merged, got more in shape ", sizes_);
      problem_.batch_sizes[problem_.batch_dims++] = sizes_[d];
    }
    for (int i = 0; i < count_; ++i) operands_[i].merged[problem_.batch_dims - 1] = stride(operands_[i], d);
  }

  Problem& problem_;
  const char* name_;
  c10::IntArrayRef sizes_;
  Operand operands_[7];  // source and target of query and key, two tables, positions
  int count_ = 0;
};

Region region(const Problem& problem, const void* data, const Strides& strides, int64_t tokens, int64_t heads,
              int64_t elements, int64_t item_bytes) {
  Region region{
      .begin = static_cast<const char*>(data), .dims = problem.batch_dims + 3, .item_bytes = item_bytes};
  for (int d = 0; d < problem.batch_dims; ++d) {
    region.sizes[d] = problem.batch_sizes[d];
    region.strides[d] = strides.batch[d] * item_bytes;
  }
  const int d = problem.batch_dims;
  region.sizes[d] = tokens;
  region.strides[d] = strides.token * item_bytes;
  region.sizes[d + 1] = heads;
  region.strides[d + 1] = strides.head * item_bytes;
  region.sizes[d + 2] = elements;
  region.strides[d + 2] = strides.element * item_bytes;
  return region;
}

Region written(const Problem& problem, int view, int64_t item_bytes) {
  const View& v = problem.view[view];
  return region(problem, v.target, v.to, problem.tokens, v.heads, 2 * problem.pairs, item_bytes);
}

void refuse(Overlap found, const char* name, const char* other) {
  TORCH_CHECK_VALUE(found != Overlap::some, name, " must not overlap ", other,
                    ", got the same element twice");
  TORCH_CHECK_VALUE(found == Overlap::none, name, " must not overlap ", other,
                    ", got strides for which that cannot be decided");
}

// In place, an element that is written may not be another element that is written or read.
void check_overlap(const Call& call, const Problem& problem) {
  const int64_t item_bytes = call.query.element_size();
  const char* const names[] = {"query", "key"};
  Region views[2];
  for (int v = 0; v < problem.views; ++v) {
    views[v] = written(problem, v, item_bytes);
    const Tensor& tensor = v == 0 ? call.query : *call.key;
    if (!tensor.is_non_overlapping_and_dense()) refuse(self_overlap(views[v]), names[v], "itself");
  }
  if (call.key) refuse(overlap(views[0], views[1]), "key", "query");

  const auto refuse_read = [&](const Region& read, const char* name) {
    for (int v = 0; v < problem.views; ++v) refuse(overlap(views[v], read), name, names[v]);
  };
  const Angles& angles = problem.angles;
  const auto table = [&](const Table& table) {
    const int64_t rows = angles.positions.data ? angles.rows : problem.tokens;
    const int64_t heads = table.strides.head == 0 ? 1 : problem.view[0].heads;
    return region(problem, table.data, table.strides, rows, heads, problem.pairs, call.cos->element_size());
  };
  if (call.cos) refuse_read(table(angles.cos), "cos");
  if (call.sin) refuse_read(table(angles.sin), "sin");
  if (call.frequencies) {
    const Frequencies& frequencies = angles.frequencies;
    const Strides strides{.token = frequencies.axis, .head = frequencies.head, .element = frequencies.pair};
    const int64_t heads = frequencies.head == 0 ? 1 : problem.view[0].heads;
    refuse_read(region(problem, frequencies.data, strides, frequencies.axes, heads, problem.pairs,
                       call.frequencies->element_size()),
                "frequencies");
  }
  if (call.positions) {
    Strides strides{.token = angles.positions.token, .element = angles.positions.axis};
    std::copy(angles.positions.batch, angles.positions.batch + kBatchDims, strides.batch);
    refuse_read(region(problem, angles.positions.data, strides, problem.tokens, 1, angles.frequencies.axes,
                       call.positions->element_size()),
                "positions");
  }
}

}  // namespace

void check_symbolic(const Call& call) { check<c10::SymInt>(call); }

Problem describe(const Call& call, const Tensor* target) {
  const Shape<int64_t> shape = check<int64_t>(call);
  Problem problem{.element = element_of(call.query.scalar_type()),
                  .interleaved = call.flags.interleaved,
                  .batch_dims = 0,
                  .tokens = shape.query.tokens,
                  .head_dim = shape.query.head_dim,
                  .start = call.flags.start,
                  .pairs = shape.pairs,
                  .views = call.key ? 2 : 1};
  problem.view[0] =
      view_of(call, call.query, target, shape.rotated_heads, shape.query.heads - shape.rotated_heads);
  if (call.key) problem.view[1] = view_of(call, *call.key, nullptr, shape.key.heads, 0);
  problem.angles.inverse = call.flags.inverse;
  if (call.frequencies) {
    problem.angles.frequencies = frequencies_of(call);
  } else {
    problem.angles.cos = table_of(call, *call.cos, shape.per_head);
    problem.angles.sin = table_of(call, *call.sin, shape.per_head);
    problem.angles.element = element_of(call.cos->scalar_type());
    problem.angles.rows = call.cos->size(call.cos->dim() + (shape.per_head ? call.flags.seq_dim : -2));
  }

  const int64_t own = call.flags.head_dim ? 2 : 3, table_own = shape.per_head ? 3 : 2;
  Leading leading(problem, call, shape.query.leading);
  leading.add(call.query, own, problem.view[0].from.batch);
  leading.add(target ? *target : call.query, own, problem.view[0].to.batch);
  if (call.key) {
    leading.add(*call.key, own, problem.view[1].from.batch);
    leading.add(*call.key, own, problem.view[1].to.batch);
  }
  if (!call.frequencies) {
    leading.add(*call.cos, table_own, problem.angles.cos.strides.batch);
    leading.add(*call.sin, table_own, problem.angles.sin.strides.batch);
  }
  if (call.positions) {
    problem.angles.positions = positions_of(*call.positions, shape.axis);
    leading.add(*call.positions, shape.axis ? 2 : 1, problem.angles.positions.batch);
  }
  leading.merge();
  if (!target) check_overlap(call, problem);
  return problem;
}

}  // namespace rope_ext::ops
