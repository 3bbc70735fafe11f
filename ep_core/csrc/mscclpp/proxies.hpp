// The threads that carry out what kernels ask of port channels: they share a buffer's channels, each channel having one
// of them. Used by transport.hpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mscclpp/core.hpp>
#include <mscclpp/port_channel.hpp>
#include <mscclpp/proxy.hpp>
#include <mscclpp/semaphore.hpp>
#include <mutex>
#include <string>
#include <vector>

namespace ep_core {

// One thread and its queue. MSCCL++'s own ProxyService would do, but that an exception in its thread, such as that of a
// peer whose connection is gone, ends the process: here the thread ends, and the kernels' deadlines say who is missing.
class ProxyThread {
 public:
  // flush_timeout_us: of a flush that makes room for more requests.
  ProxyThread(int device, std::int64_t flush_timeout_us);
  ProxyThread(const ProxyThread&) = delete;
  ProxyThread& operator=(const ProxyThread&) = delete;

  // A channel of this thread from `source` to `target`, over the semaphore's connection. Before `start`.
  mscclpp::PortChannel add(const mscclpp::Semaphore& semaphore, const mscclpp::RegisteredMemory& target,
                           const mscclpp::RegisteredMemory& source);
  void start() { proxy_.start(true); }
  // Waits until the request at hand is carried out.
  void stop() { proxy_.stop(); }
  // What ended the thread; empty while it runs.
  std::string failure() const;

 private:
  struct Line {
    std::shared_ptr<mscclpp::Host2DeviceSemaphore> semaphore;
    int requests = 0;  // since the last flush
  };

  mscclpp::ProxyHandlerResult handle(const mscclpp::ProxyTrigger& trigger);
  void carry_out(const mscclpp::ProxyTrigger& trigger);

  std::int64_t flush_timeout_us_;
  std::vector<Line> lines_;  // by semaphore's number
  std::vector<mscclpp::RegisteredMemory> memories_;
  mutable std::mutex failing_;
  std::string failure_;
  std::shared_ptr<mscclpp::Proxy> shared_;
  mscclpp::Proxy& proxy_;
};

}  // namespace ep_core
