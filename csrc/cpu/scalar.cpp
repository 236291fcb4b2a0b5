// One pair at a time: every processor, and the definition that the vector code must equal bit for bit.
#include "kernel.h"

namespace rope_ext::cpu {
namespace {

template <class C>
struct Scalar {
  C value;
  static constexpr int64_t lanes = 1;
};
template <class C>
ROPE_INLINE Scalar<C> multiply(Scalar<C> a, Scalar<C> b) {
  return {rope_ext::multiply(a.value, b.value)};
}
template <class C>
ROPE_INLINE Scalar<C> fma(Scalar<C> a, Scalar<C> b, Scalar<C> c) {
  return {rope_ext::fma(a.value, b.value, c.value)};
}
template <class C>
ROPE_INLINE Scalar<C> fms(Scalar<C> a, Scalar<C> b, Scalar<C> c) {
  return {rope_ext::fms(a.value, b.value, c.value)};
}

struct ScalarIsa {
  template <class C>
  using Vector = Scalar<C>;
  template <class T>
  static constexpr bool takes_pairs_apart = true;
  template <class C>
  static constexpr bool makes_angles = false;

  template <class C>
  static ROPE_INLINE Scalar<C> broadcast(C value) {
    return {value};
  }
  template <class T>
  static ROPE_INLINE Scalar<Compute<T>> load(const T* source, int64_t n = 1) {
    return {n > 0 ? to_compute(*source) : Compute<T>(0)};
  }
  template <class C, class T>
  static ROPE_INLINE void store(T* target, Scalar<C> value, int64_t = 1) {
    rope_ext::store(target, value.value);
  }
  template <class T>
  static ROPE_INLINE Two<Scalar<Compute<T>>> load_two(const T* source) {
    return {load(source), load(source + 1)};
  }
  template <class T, class C>
  static ROPE_INLINE Two<Scalar<C>> load_two_angles(const C* source) {
    return load_two(source);
  }
  template <class T, int n>
  static ROPE_INLINE void store_twos(T* const (&targets)[n], const Two<Scalar<Compute<T>>> (&packs)[n]) {
    for (int v = 0; v < n; ++v) {
      store(targets[v], packs[v].first);
      store(targets[v] + 1, packs[v].second);
    }
  }
  template <class T>
  static ROPE_INLINE Pair<Scalar<Compute<T>>> load_pairs(const T* source, int64_t = 1) {
    return {load(source), load(source + 1)};
  }
  template <class T>
  static ROPE_INLINE void store_pairs(T* target, Pair<Scalar<Compute<T>>> pair, int64_t) {
    store(target, pair.x);
    store(target + 1, pair.y);
  }
  template <class T, int n>
  static ROPE_INLINE void store_many_pairs(T* target, const Pair<Scalar<Compute<T>>> (&pairs)[n]) {
    for (int v = 0; v < n; ++v) store_pairs(target + 2 * v, pairs[v], 1);
  }
};

}  // namespace

constexpr Kernels scalar_kernels = kernels_of<ScalarIsa>();

}  // namespace rope_ext::cpu
