// What the CUDA kernel reads and writes, counted. Its sources are compiled with -fsanitize=thread, which
// calls a function at every access to memory; they are defined here, in place of the sanitizer's.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "problems.h"
#include "walks.h"

namespace rope_ext::test {
namespace {

struct Access {
  uintptr_t address;
  size_t bytes;
  bool write;
  int64_t thread, block;
};

template <class Variable>
bool lies_in(const Variable& variable, uintptr_t address) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&variable);
  return begin <= address && address < begin + sizeof variable;
}

int64_t flat(uint3 place, dim3 dims) {
  return place.x + int64_t{dims.x} * (place.y + int64_t{dims.y} * place.z);
}

// Keeps what the threads of a walk touch, but for the stack, where their arguments and registers are, and
// constant memory.
class Recorder {
 public:
  void follow(const Walk& walk, const cuda_on_host::Launch& launch) {
    char here;
    stack_begin_ = reinterpret_cast<uintptr_t>(&here) - kStackBytes;
    running = this;
    walk(launch);
    running = nullptr;
  }

  static void record(const void* pointer, size_t bytes, bool write) {
    if (running) running->add(reinterpret_cast<uintptr_t>(pointer), bytes, write);
  }

  const std::vector<Access>& accesses() const { return accesses_; }

 private:
  static constexpr uintptr_t kStackBytes = 1 << 16;
  static inline Recorder* running = nullptr;

  void add(uintptr_t address, size_t bytes, bool write) {
    const bool on_stack = stack_begin_ <= address && address < stack_end_;
    const bool built_in = lies_in(threadIdx, address) || lies_in(blockIdx, address) ||
                          lies_in(blockDim, address) || lies_in(gridDim, address);
    if (on_stack || built_in || lies_in(kTurnsOfRadian, address)) return;
    const int64_t block = flat(blockIdx, gridDim);
    accesses_.push_back(
        {address, bytes, write, block * size_of(blockDim) + flat(threadIdx, blockDim), block});
  }

  uintptr_t stack_begin_ = 0;
  const uintptr_t stack_end_ = reinterpret_cast<uintptr_t>(this);
  std::vector<Access> accesses_;
};

std::vector<Access> accesses_of(const Problem& problem, const Walk& walk = in_order,
                                int multiprocessors = kMultiprocessors[0]) {
  Recorder recorder;
  launch(problem, [&](const cuda_on_host::Launch& launch) { recorder.follow(walk, launch); },
         {nullptr, multiprocessors});
  return recorder.accesses();
}

}  // namespace
}  // namespace rope_ext::test

using rope_ext::test::Recorder;

#define ROPE_RECORD(bytes)                                                                      \
  void __tsan_read##bytes(void* address) { Recorder::record(address, bytes, false); }           \
  void __tsan_write##bytes(void* address) { Recorder::record(address, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* address) { Recorder::record(address, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* address) { Recorder::record(address, bytes, true); }

extern "C" {
ROPE_RECORD(1)
ROPE_RECORD(2)
ROPE_RECORD(4)
ROPE_RECORD(8)
ROPE_RECORD(16)
void __tsan_read_range(void* address, size_t bytes) { Recorder::record(address, bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { Recorder::record(address, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

namespace rope_ext::test {
namespace {

struct Use {
  int reads = 0, writes = 0;
  bool operator==(const Use&) const = default;
};
// Of every byte, by its address.
using Uses = std::unordered_map<uintptr_t, Use>;

template <class Body>
void for_every_byte(const void* begin, size_t bytes, Body body) {
  for (size_t i = 0; i < bytes; ++i) body(reinterpret_cast<uintptr_t>(begin) + i);
}

template <class Body>
void for_every_byte(const Access& access, Body body) {
  for (size_t i = 0; i < access.bytes; ++i) body(access.address + i);
}

// Of query and key: what turns is read once and written once; out of place, so is what is kept.
template <class T>
Uses uses_due(const Rotation<T>& rotation, const Call& call) {
  Uses due;
  for (int v = 0; v < rotation.problem().views; ++v) {
    const View& view = rotation.problem().view[v];
    const T* const source = static_cast<const T*>(view.source) - call.start * view.from.element;
    const T* const target = static_cast<const T*>(view.target) - call.start * view.to.element;
    rotation.for_every_token([&](const auto& batch, int64_t token) {
      for (int64_t head = 0; head < view.heads + view.kept_heads; ++head) {
        for (int64_t e = 0; e < call.head_dim; ++e) {
          const bool turns = head < view.heads && call.start <= e && e < call.start + 2 * call.pairs;
          if (!turns && call.in_place) continue;
          for_every_byte(source + place(view.from, batch, token, head, e), sizeof(T),
                         [&](uintptr_t byte) { ++due[byte].reads; });
          for_every_byte(target + place(view.to, batch, token, head, e), sizeof(T),
                         [&](uintptr_t byte) { ++due[byte].writes; });
        }
      }
    });
  }
  return due;
}

using Bytes = std::unordered_set<uintptr_t>;

void add_bytes(Bytes& bytes, const void* data, int64_t element_bytes, size_t place) {
  const size_t count = static_cast<size_t>(element_bytes);
  for_every_byte(static_cast<const char*>(data) + place * count, count,
                 [&](uintptr_t byte) { bytes.insert(byte); });
}

template <class T>
Bytes bytes_of_positions(const Rotation<T>& rotation, const Call& call) {
  Bytes bytes;
  const Positions& positions = rotation.problem().angles.positions;
  rotation.for_every_token([&](const auto& batch, int64_t token) {
    for (int64_t axis = 0; positions.data && axis < call.axes; ++axis)
      add_bytes(bytes, positions.data, positions.wide ? 8 : 4,
                place(strides_of(positions), batch, token, axis, 0));
  });
  return bytes;
}

// Of positions, and of frequencies or the rows of both tables that tokens take.
template <class T>
Bytes bytes_of_angles(const Rotation<T>& rotation, const Call& call) {
  Bytes bytes = bytes_of_positions(rotation, call);
  const Angles& angles = rotation.problem().angles;
  const Frequencies& frequencies = angles.frequencies;
  const auto for_every_row = [&](auto body) {
    for (int64_t head = 0; head < (call.angles_per_head ? call.sides[0].heads : 1); ++head) {
      for (int64_t pair = 0; pair < call.pairs; ++pair) body(head, pair);
    }
  };
  if (frequencies.data) {
    for_every_row([&](int64_t head, int64_t pair) {
      for (int64_t axis = 0; axis < call.axes; ++axis)
        add_bytes(bytes, frequencies.data, frequencies.fixed ? 8 : bytes_of(frequencies.element),
                  place(strides_of(frequencies), {}, axis, head, pair));
    });
    return bytes;
  }
  rotation.for_every_token([&](const auto& batch, int64_t token) {
    for_every_row([&](int64_t head, int64_t pair) {
      for (const Table& table : {angles.cos, angles.sin})
        add_bytes(bytes, table.data, bytes_of(angles.element),
                  place(table.strides, batch, rotation.row_of(batch, token), head, pair));
    });
  });
  return bytes;
}

void expect_minimal_traffic(const Call& call, Random& random, const Walk& walk) {
  with_rotation(call, random, [&](const auto& rotation) {
    const Bytes angles = bytes_of_angles(rotation, call);
    Uses uses;
    std::unordered_map<uintptr_t, int64_t> threads;            // of a byte of query or key
    std::vector<std::pair<uintptr_t, int64_t>> angle_threads;  // that read a byte of angles
    for (const Access& access : accesses_of(rotation.problem(), walk)) {
      for_every_byte(access, [&](uintptr_t byte) {
        if (angles.contains(byte)) {
          ASSERT_FALSE(access.write) << call;
          angle_threads.emplace_back(byte, access.thread);
        } else {
          ++(access.write ? uses[byte].writes : uses[byte].reads);
          ASSERT_EQ(access.thread, threads.emplace(byte, access.thread).first->second) << call;
        }
      });
    }
    EXPECT_TRUE(uses_due(rotation, call) == uses) << call;
    Bytes read;
    for (const auto& [byte, thread] : angle_threads) read.insert(byte);
    EXPECT_EQ(angles, read) << call;
    // Radians are made pair by pair, each with the positions.
    if (call.source == Source::radians)
      std::erase_if(angle_threads, [positions = bytes_of_positions(rotation, call)](const auto& access) {
        return positions.contains(access.first);
      });
    std::sort(angle_threads.begin(), angle_threads.end());
    EXPECT_EQ(angle_threads.end(), std::adjacent_find(angle_threads.begin(), angle_threads.end()))
        << "a thread read an angle twice: " << call;
  });
}

TEST(CudaTraffic, IsOneReadAndOneWriteOfWhatTurnsOrIsKept) {
  Random random(1);
  for (int trial = 0; trial < 150 && !HasFailure(); ++trial) {
    Call call = any_call(random);
    call.tokens = std::min<int64_t>(call.tokens, 9);
    expect_minimal_traffic(call, random, trial % 2 == 0 ? Walk(in_order) : enlarged({1, 1, 1}, {1, 1, 1}));
  }
}

// As projections leave them: 32 heads of queries and 8 of keys.
Call typical(Element element, bool interleaved, Order order) {
  return {.element = element,
          .angle_element = element == Element::float64 ? Element::float64 : Element::float32,
          .interleaved = interleaved,
          .batch = {},
          .tokens = 33,
          .head_dim = 128,
          .pairs = 64,
          .sides = {{.heads = 32, .order = order}, {.heads = 8, .order = order}},
          .edge = Edge::begin};
}

template <class Check>
void for_typical_calls(Check check) {
  for (const Element element : kElements) {
    for (const bool interleaved : {false, true}) {
      for (const Order order : {Order::token_head_element, Order::head_token_element}) {
        Call call = typical(element, interleaved, order);
        for (const Source source : {Source::tables, Source::turns}) {
          call.source = source;
          check(call);
        }
      }
    }
  }
}

template <class T>
bool is_element(const Rotation<T>& rotation, const Access& access) {
  for (int v = 0; v < rotation.problem().views; ++v) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(rotation.problem().view[v].target);
    if (begin <= access.address && access.address < begin + rotation.expected(v).size() * sizeof(T))
      return true;
  }
  return false;
}

TEST(CudaTraffic, GoesInTheWidestAccesses) {
  Random random(2);
  for_typical_calls([&](Call call) {
    for (const int64_t ahead : {0, 1, 2, 4}) {
      for (Side& side : call.sides) side.spacing.ahead = ahead;
      const int64_t width = ahead == 0 ? 16 : std::min<int64_t>(ahead * bytes_of(call.element), 16);
      with_rotation(call, random, [&](const auto& rotation) {
        for (const Access& access : accesses_of(rotation.problem())) {
          if (!is_element(rotation, access)) continue;
          ASSERT_EQ(static_cast<size_t>(width), access.bytes) << call;
        }
      });
    }
  });
}

// What a warp touches at once fills 32-byte sectors.
TEST(CudaTraffic, FillsSectors) {
  Random random(3);
  for_typical_calls([&](const Call& call) {
    with_rotation(call, random, [&](const auto& rotation) {
      std::map<int64_t, int> done;                                                         // by a thread
      std::map<std::pair<int64_t, int>, std::pair<std::set<uintptr_t>, size_t>> requests;  // of warps
      for (const Access& access : accesses_of(rotation.problem())) {
        if (!is_element(rotation, access)) continue;
        auto& [sectors, bytes] = requests[{access.thread / 32, done[access.thread]++}];
        sectors.insert(access.address / 32);
        bytes += access.bytes;
      }
      for (const auto& [request, touched] : requests)
        ASSERT_EQ(touched.second, 32 * touched.first.size()) << call;
    });
  });
}

TEST(CudaTraffic, HasSeveralLoadsUnderWay) {
  Random random(4);
  for_typical_calls([&](const Call& call) {
    with_rotation(call, random, [&](const auto& rotation) {
      std::map<int64_t, std::string> orders;  // of a thread's loads and stores
      for (const Access& access : accesses_of(rotation.problem(), in_order, 1)) {
        if (is_element(rotation, access)) orders[access.thread] += access.write ? 's' : 'l';
      }
      for (const auto& [thread, order] : orders)
        ASSERT_EQ("llll", order.substr(0, 4)) << call << " thread " << thread << " " << order;
    });
  });
}

// Where there are many tokens. A block finds in its cache what it has read before, so that only its first
// read of a byte counts; heads outside of tokens, query and key are in blocks of their own.
TEST(CudaTraffic, IsOneRowOfAnglesOfATokenAndBlock) {
  Random random(5);
  for (const bool interleaved : {false, true}) {
    for (const Order order : {Order::token_head_element, Order::head_token_element}) {
      Call call = typical(Element::bfloat16, interleaved, order);
      call.tokens = 520;
      with_rotation(call, random, [&](const auto& rotation) {
        const Bytes angles = bytes_of_angles(rotation, call);
        std::set<std::pair<int64_t, uintptr_t>> reads;
        for (const Access& access : accesses_of(rotation.problem(), in_order, 1)) {
          for_every_byte(access, [&](uintptr_t byte) {
            if (angles.contains(byte)) reads.emplace(access.block, byte);
          });
        }
        EXPECT_EQ(angles.size() * (order == Order::token_head_element ? 1 : 2), reads.size()) << call;
      });
    }
  }
}

}  // namespace
}  // namespace rope_ext::test
