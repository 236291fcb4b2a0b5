// The operators as C++ sees them: types, one argument for each of the schema's, and handles.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

namespace rope_ext::ops {

using Tensor = at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
using OptionalInt = std::optional<int64_t>;

// How every operator ends: seq_dim, head_dim, num_heads, start, interleaved, inverse.
struct Flags {
  int64_t seq_dim;
  OptionalInt head_dim, num_heads;
  int64_t start;
  bool interleaved, inverse;
};

using Apply = void(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                   const OptionalTensor& positions, int64_t seq_dim, OptionalInt head_dim,
                   OptionalInt num_heads, int64_t start, bool interleaved, bool inverse);

using ApplyFrequencies = void(const Tensor& query, const OptionalTensor& key, const OptionalTensor& positions,
                              const Tensor& frequencies, double scale, int64_t seq_dim, OptionalInt head_dim,
                              OptionalInt num_heads, int64_t start, bool interleaved, bool inverse);

using Rotate = Tensor(const Tensor& x, const Tensor& cos, const Tensor& sin, const OptionalTensor& positions,
                      int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads, int64_t start,
                      bool interleaved, bool inverse);

using RotateFrequencies = Tensor(const Tensor& x, const OptionalTensor& positions, const Tensor& frequencies,
                                 double scale, int64_t seq_dim, OptionalInt head_dim, OptionalInt num_heads,
                                 int64_t start, bool interleaved, bool inverse);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Where angles come from, as an operator is told, and the operators that are told so.
struct FromTables {
  const Tensor &cos, &sin;
  const OptionalTensor& positions;

  static const auto& apply_operator() {
    static const auto op = find_operator<Apply>("rope::apply");
    return op;
  }
  static const auto& rotate_operator() {
    static const auto op = find_operator<Rotate>("rope::rotate");
    return op;
  }
  template <class F>
  decltype(auto) pass_to(F&& f) const {
    return f(cos, sin, positions);
  }
};

struct FromFrequencies {
  const OptionalTensor& positions;
  const Tensor& frequencies;
  double scale;

  static const auto& apply_operator() {
    static const auto op = find_operator<ApplyFrequencies>("rope::apply_frequencies");
    return op;
  }
  static const auto& rotate_operator() {
    static const auto op = find_operator<RotateFrequencies>("rope::rotate_frequencies");
    return op;
  }
  template <class F>
  decltype(auto) pass_to(F&& f) const {
    return f(positions, frequencies, scale);
  }
};

// Calls of the operators: from the top, or below the keys that have had their turn.
template <class Source>
void apply(const Source& source, const Tensor& query, const OptionalTensor& key, const Flags& f) {
  source.pass_to([&](const auto&... angles) {
    Source::apply_operator().call(query, key, angles..., f.seq_dim, f.head_dim, f.num_heads, f.start,
                                  f.interleaved, f.inverse);
  });
}

template <class Source>
void apply_below(c10::DispatchKeySet keys, const Source& source, const Tensor& query,
                 const OptionalTensor& key, const Flags& f) {
  source.pass_to([&](const auto&... angles) {
    Source::apply_operator().redispatch(keys, query, key, angles..., f.seq_dim, f.head_dim, f.num_heads,
                                        f.start, f.interleaved, f.inverse);
  });
}

template <class Source>
Tensor rotate(const Source& source, const Tensor& x, const Flags& f) {
  return source.pass_to([&](const auto&... angles) {
    return Source::rotate_operator().call(x, angles..., f.seq_dim, f.head_dim, f.num_heads, f.start,
                                          f.interleaved, f.inverse);
  });
}

template <class Source>
Tensor rotate_below(c10::DispatchKeySet keys, const Source& source, const Tensor& x, const Flags& f) {
  return source.pass_to([&](const auto&... angles) {
    return Source::rotate_operator().redispatch(keys, x, angles..., f.seq_dim, f.head_dim, f.num_heads,
                                                f.start, f.interleaved, f.inverse);
  });
}

}  // namespace rope_ext::ops
