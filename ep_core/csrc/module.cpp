// The Python binding, ep_core._host. Torch-free: addresses come as integers, shapes and sizes as numbers;
// ep_core/host.py has checked them. Every call gives up the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <system_error>
#include <tuple>

#include "guard.hpp"
#include "high_throughput.hpp"
#include "kernels.hpp"
#include "low_latency.hpp"
#include "outbox.hpp"
#include "world.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace ep_core {
namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Token token_of(const nb::bytes& bytes) {
  Token token{};
  if (bytes.size() != token.size()) throw WrongArgument("token: wanted 16 bytes");
  std::memcpy(token.data(), bytes.c_str(), token.size());
  return token;
}

void check_signals() {
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

// One buffer on one rank.
struct Host {
  World world;
  LowLatency low_latency{world};
  HighThroughput high_throughput{world};

  Host(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, const nb::bytes& token)
      : world(rank, ranks, nvl_bytes, rdma_bytes, timeout_s, token_of(token), check_signals) {}

  void map(const std::vector<std::tuple<int, int, nb::bytes>>& peers, const std::vector<int>& node_of) {
    std::vector<PeerAddress> addresses;
    addresses.reserve(peers.size());
    for (const auto& [pid, fd, token] : peers) addresses.push_back({pid, fd, token_of(token)});
    const nb::gil_scoped_release release;
    world.map(addresses, node_of);
  }
};

DispatchInput dispatch_input(std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::int64_t tokens,
                             std::int64_t topk_count, std::int64_t max_tokens, std::int64_t hidden,
                             std::int64_t experts, bool weighted, bool fp8, bool round_scale, bool ue8m0) {
  return {{max_tokens, hidden, experts},
          at<const std::uint16_t>(x),
          at<const std::int64_t>(topk),
          at<const float>(weights),
          tokens,
          topk_count,
          weighted,
          fp8,
          round_scale,
          ue8m0};
}

DispatchOutput dispatch_output(std::uintptr_t x, std::uintptr_t scales, std::uintptr_t src_info,
                               std::uintptr_t layout_range, std::uintptr_t count, std::uintptr_t stats,
                               std::uintptr_t map_rows, std::uintptr_t map_weights) {
  return {at<std::byte>(x),        at<std::byte>(scales),   at<std::int32_t>(src_info), at<std::int64_t>(layout_range),
          at<std::int32_t>(count), at<std::int32_t>(stats), at<std::int32_t>(map_rows), at<float>(map_weights)};
}

CombineInput combine_input(std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::uintptr_t src_info,
                           std::uintptr_t layout_range, std::int64_t tokens, std::int64_t topk_count,
                           std::int64_t max_tokens, std::int64_t hidden, std::int64_t experts, bool zero_copy,
                           std::uintptr_t map_rows, std::uintptr_t map_weights) {
  return {{max_tokens, hidden, experts},
          at<const std::uint16_t>(x),
          at<const std::int64_t>(topk),
          at<const float>(weights),
          at<const std::int32_t>(src_info),
          at<const std::int64_t>(layout_range),
          tokens,
          topk_count,
          zero_copy,
          at<const std::int32_t>(map_rows),
          at<const float>(map_weights)};
}

// The rows of the next zero-copy combine, as bytes; the array keeps the mapping alive.
nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> next_combine_buffer(Host& host, std::int64_t max_tokens,
                                                                      std::int64_t hidden, std::int64_t experts) {
  std::uint16_t* rows = nullptr;
  {
    const nb::gil_scoped_release release;
    rows = host.low_latency.next_combine_buffer({max_tokens, hidden, experts});
  }
  auto keep = std::make_unique<std::shared_ptr<Mapping>>(host.world.own_mapping());
  nb::capsule owner(keep.get(), [](void* held) noexcept { delete static_cast<std::shared_ptr<Mapping>*>(held); });
  keep.release();
  const auto bytes = static_cast<std::size_t>(experts * max_tokens * hidden) * sizeof(std::uint16_t);
  return {reinterpret_cast<std::uint8_t*>(rows), {bytes}, owner};
}

// Counts for get_dispatch_layout; every expert of topk must be -1 or below `experts`. Returns the flat index of the
// first that is not, or -1.
std::int64_t dispatch_layout(std::uintptr_t topk_idx, std::int64_t tokens, std::int64_t topk_count,
                             std::int64_t experts, std::int64_t ranks, std::uintptr_t per_rank,
                             std::uintptr_t per_expert, std::uintptr_t in_rank) {
  const std::int64_t local = experts / ranks;
  const auto* topk = at<const std::int64_t>(topk_idx);
  auto* is_in_rank = at<bool>(in_rank);
  for (std::int64_t i = 0; i < tokens * topk_count; ++i) {
    if (topk[i] < -1 || topk[i] >= experts) return i;
    if (topk[i] < 0) continue;
    ++at<std::int32_t>(per_expert)[topk[i]];
    bool& seen = is_in_rank[i / topk_count * ranks + topk[i] / local];
    at<std::int32_t>(per_rank)[topk[i] / local] += !seen;
    seen = true;
  }
  return -1;
}

// The next message as an array of bytes, or None.
std::optional<nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>> take_message(Outbox& outbox, int limit_ms) {
  std::optional<Message> message;
  {
    const nb::gil_scoped_release release;
    message = outbox.take(std::chrono::milliseconds(limit_ms));
  }
  if (!message) return std::nullopt;
  auto keep = std::make_unique<Message>(std::move(*message));
  Message* const bytes = keep.get();
  nb::capsule owner(bytes, [](void* held) noexcept { delete static_cast<Message*>(held); });
  keep.release();
  return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(bytes->data(), {bytes->size()}, owner);
}

void raise_timeout(const PeersMissing& error) {
  const nb::object type = nb::module_::import_("ep_core.errors").attr("EPTimeoutError");
  nb::list missing;
  nb::list exited;
  for (const int rank : error.missing) missing.append(rank);
  for (const int rank : error.exited) exited.append(rank);
  const nb::object value = type(error.phase.c_str(), error.rank, missing, error.waited_s, exited, error.why.c_str());
  PyErr_SetObject(type.ptr(), value.ptr());
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const PeersMissing& error) {
    raise_timeout(error);
  } catch (const WrongArgument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::system_error& error) {
    PyErr_SetString(PyExc_OSError, error.what());
  }
}

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace
}  // namespace ep_core

NB_MODULE(_host, m) {
  using namespace ep_core;
  const auto release = nb::call_guard<nb::gil_scoped_release>();

  // Buffers and hooks that live until the interpreter ends are no error, and launchers should stay quiet.
  nb::set_leak_warnings(false);
  nb::register_exception_translator(translate);
  m.attr("COMPILER") = compiler();
  m.attr("ISAS_BUILT") = built_isas();
  m.attr("ISA") = kernels().isa;
  m.attr("MAX_RANKS") = kMaxRanks;
  m.attr("MAX_TOPK") = kMaxTopk;
  m.attr("MAX_EXPERTS") = kMaxExperts;
  m.def("low_latency_size_hint", [](std::int64_t max_tokens, std::int64_t hidden, int ranks, std::int64_t experts) {
    return LowLatency::size_hint({max_tokens, hidden, experts}, ranks);
  });

  m.def("high_throughput_least_bytes", &HighThroughput::least_bytes);
  m.def("dispatch_layout", &dispatch_layout, release);

  nb::class_<Outbox>(m, "Outbox")
      .def("take", &take_message, "limit_ms"_a)
      .def_prop_ro("closed", &Outbox::closed)
      .def("close", &Outbox::close);

  nb::class_<Host>(m, "Host")
      .def(nb::init<int, int, std::int64_t, std::int64_t, double, const nb::bytes&>(), "rank"_a, "ranks"_a,
           "nvl_bytes"_a, "rdma_bytes"_a, "timeout_s"_a, "token"_a)
      .def_prop_ro("fd", [](const Host& host) { return host.world.fd(); })
      .def(
          "hold",
          [](Host& host, int source, const nb::bytes& token) { return host.world.hold(source, token_of(token)); },
          "source"_a, "token"_a)
      .def("map", &Host::map, "peers"_a, "node_of"_a)
      .def(
          "meet", [](Host& host) { host.world.meet(); }, release)
      .def(
          "outbox", [](const Host& host, int node) { return host.world.outbox(node); }, "node"_a)
      .def(
          "deliver",
          [](Host& host, int source, std::uintptr_t message, std::size_t bytes) {
            host.world.deliver(source, at<const std::byte>(message), bytes);
          },
          release, "source"_a, "message"_a, "bytes"_a)
      .def(
          "depart", [](Host& host, int source) { host.world.depart(source); }, release, "source"_a)
      .def("destroy", [](Host& host) { host.world.destroy(); })
      .def("check_low_latency_fits",
           [](const Host& host, std::int64_t max_tokens, std::int64_t hidden, std::int64_t experts) {
             host.low_latency.check_fits({max_tokens, hidden, experts});
           })
      .def(
          "ll_dispatch",
          [](Host& host, std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::int64_t tokens,
             std::int64_t topk_count, std::int64_t max_tokens, std::int64_t hidden, std::int64_t experts, bool weighted,
             bool fp8, bool round_scale, bool ue8m0, std::uintptr_t out_x, std::uintptr_t out_scales,
             std::uintptr_t out_src_info, std::uintptr_t out_layout_range, std::uintptr_t out_count,
             std::uintptr_t stats, std::uintptr_t map_rows, std::uintptr_t map_weights) {
            host.low_latency.dispatch(dispatch_input(x, topk, weights, tokens, topk_count, max_tokens, hidden, experts,
                                                     weighted, fp8, round_scale, ue8m0),
                                      dispatch_output(out_x, out_scales, out_src_info, out_layout_range, out_count,
                                                      stats, map_rows, map_weights));
          },
          release)
      .def(
          "ll_dispatch_send",
          [](Host& host, std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::int64_t tokens,
             std::int64_t topk_count, std::int64_t max_tokens, std::int64_t hidden, std::int64_t experts, bool weighted,
             bool fp8, bool round_scale, bool ue8m0) {
            return host.low_latency.dispatch_send(dispatch_input(x, topk, weights, tokens, topk_count, max_tokens,
                                                                 hidden, experts, weighted, fp8, round_scale, ue8m0));
          },
          release)
      .def(
          "ll_dispatch_receive",
          [](Host& host, std::uint64_t epoch, std::uintptr_t out_x, std::uintptr_t out_scales,
             std::uintptr_t out_src_info, std::uintptr_t out_layout_range, std::uintptr_t out_count,
             std::uintptr_t stats, std::uintptr_t map_rows, std::uintptr_t map_weights) {
            host.low_latency.dispatch_receive(epoch, dispatch_output(out_x, out_scales, out_src_info, out_layout_range,
                                                                     out_count, stats, map_rows, map_weights));
          },
          release)
      .def(
          "ll_combine",
          [](Host& host, std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::uintptr_t src_info,
             std::uintptr_t layout_range, std::int64_t tokens, std::int64_t topk_count, std::int64_t max_tokens,
             std::int64_t hidden, std::int64_t experts, bool zero_copy, std::uintptr_t map_rows,
             std::uintptr_t map_weights, std::uintptr_t out) {
            host.low_latency.combine(combine_input(x, topk, weights, src_info, layout_range, tokens, topk_count,
                                                   max_tokens, hidden, experts, zero_copy, map_rows, map_weights),
                                     at<std::uint16_t>(out));
          },
          release)
      .def(
          "ll_combine_send",
          [](Host& host, std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, std::uintptr_t src_info,
             std::uintptr_t layout_range, std::int64_t tokens, std::int64_t topk_count, std::int64_t max_tokens,
             std::int64_t hidden, std::int64_t experts, bool zero_copy, std::uintptr_t map_rows,
             std::uintptr_t map_weights) {
            return host.low_latency.combine_send(combine_input(x, topk, weights, src_info, layout_range, tokens,
                                                               topk_count, max_tokens, hidden, experts, zero_copy,
                                                               map_rows, map_weights));
          },
          release)
      .def(
          "ll_combine_receive",
          [](Host& host, std::uint64_t epoch, std::uintptr_t out) {
            host.low_latency.combine_receive(epoch, at<std::uint16_t>(out));
          },
          release)
      .def("ll_next_combine_buffer", &next_combine_buffer)
      .def(
          "ht_dispatch_begin",
          [](Host& host, std::uintptr_t x, std::int64_t row_bytes, std::uintptr_t scales, std::int64_t scales_per_row,
             std::uintptr_t topk, std::uintptr_t weights, std::int64_t topk_count, std::int64_t tokens,
             std::int64_t experts, std::uintptr_t in_rank, std::uintptr_t per_rank, std::uintptr_t per_expert,
             std::uintptr_t cached_prefix, std::int64_t room) {
            const HtCounts counts = host.high_throughput.dispatch_begin(
                {at<const std::byte>(x), row_bytes, at<const float>(scales), scales_per_row,
                 at<const std::int64_t>(topk), at<const float>(weights), topk_count, tokens, experts,
                 at<const bool>(in_rank), at<const std::int32_t>(per_rank), at<const std::int32_t>(per_expert),
                 at<const std::int32_t>(cached_prefix), room});
            return std::make_tuple(counts.rank_prefix, counts.per_expert, counts.received);
          },
          release)
      .def(
          "ht_dispatch_finish",
          [](Host& host, std::uintptr_t x, std::uintptr_t scales, std::uintptr_t topk, std::uintptr_t weights,
             std::uintptr_t src_idx) {
            host.high_throughput.dispatch_finish({at<std::byte>(x), at<float>(scales), at<std::int64_t>(topk),
                                                  at<float>(weights), at<std::int32_t>(src_idx)});
          },
          release)
      .def(
          "ht_combine",
          [](Host& host, std::uintptr_t x, bool is_f32, std::int64_t columns, std::int64_t received,
             std::uintptr_t weights, std::int64_t topk_count, std::uintptr_t src_idx, std::uintptr_t rank_prefix,
             std::uintptr_t in_rank, std::int64_t tokens, std::uintptr_t bias_0, std::uintptr_t bias_1,
             std::uintptr_t out, std::uintptr_t out_weights) {
            host.high_throughput.combine({at<const std::byte>(x),
                                          is_f32,
                                          columns,
                                          received,
                                          at<const float>(weights),
                                          topk_count,
                                          at<const std::int32_t>(src_idx),
                                          at<const std::int32_t>(rank_prefix),
                                          at<const bool>(in_rank),
                                          tokens,
                                          {at<const std::byte>(bias_0), at<const std::byte>(bias_1)}},
                                         at<std::byte>(out), at<float>(out_weights));
          },
          release);
}
