// The Python binding, ep_core._mscclpp. Torch-free: addresses come as integers. Every call gives up the GIL; messages
// are carried by Python (ep_core/messages.py), which takes it for as long.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <mscclpp/core.hpp>
#include <new>

#include "bootstrap.hpp"
#include "transport.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace ep_core {
namespace {

using PythonSend = std::function<void(nb::bytes, int, int)>;
using PythonReceive = std::function<nb::bytes(int, int)>;

std::shared_ptr<CarriedBootstrap> carried(int rank, int ranks, PythonSend send, PythonReceive receive) {
  return std::make_shared<CarriedBootstrap>(
      rank, ranks,
      [send = std::move(send)](std::string_view message, int peer, int tag) {
        const nb::gil_scoped_acquire gil;
        send(nb::bytes(message.data(), message.size()), peer, tag);
      },
      [receive = std::move(receive)](int peer, int tag) {
        const nb::gil_scoped_acquire gil;
        const nb::bytes message = receive(peer, tag);
        return std::string(message.c_str(), message.size());
      });
}

}  // namespace
}  // namespace ep_core

NB_MODULE(_mscclpp, m) {
  using namespace ep_core;  // NOLINT(google-build-using-namespace)
  using release = nb::call_guard<nb::gil_scoped_release>;
  m.doc() = "Peers' GPUs reached through MSCCL++; see ep_core/csrc/mscclpp/.";
  m.attr("VERSION") = mscclpp::version();
  m.def("abandon", &abandon);
  m.def("ib_devices", &ib_devices, release());
  nb::class_<DescriptorServer>(m, "DescriptorServer")
      .def(nb::init<std::int64_t>(), "timeout_s"_a, release())
      .def("stop", &DescriptorServer::stop, release());
  nb::class_<Transport>(m, "Transport")
      .def(
          "__init__",
          [](Transport* self, int rank, int ranks, std::uintptr_t base, std::size_t size, int device,
             DescriptorServer& server, PythonSend send, PythonReceive receive, std::vector<int> node_of,
             std::string transport, int proxies, double timeout_s) {
            const nb::gil_scoped_release without_gil;
            new (self) Transport(carried(rank, ranks, std::move(send), std::move(receive)), server,
                                 reinterpret_cast<void*>(base), size, device,
                                 {std::move(node_of), std::move(transport), proxies, timeout_s});
          },
          "rank"_a, "ranks"_a, "base"_a, "size"_a, "device"_a, "server"_a, "send"_a, "receive"_a, "node_of"_a,
          "transport"_a, "proxies"_a, "timeout_s"_a)
      .def("addresses", &Transport::addresses)
      .def("port_handles",
           [](const Transport& transport) {
             std::vector<nb::bytes> found;
             for (const std::string& handle : transport.port_handles()) {
               found.emplace_back(handle.data(), handle.size());
             }
             return found;
           })
      .def("failure", &Transport::failure)
      .def("close", &Transport::close, release());
}
