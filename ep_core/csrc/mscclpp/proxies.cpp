#include "proxies.hpp"

#include <mscclpp/gpu_utils.hpp>
#include <mscclpp/numa.hpp>

namespace ep_core {
namespace {

// Requests that a queue has room for: two operations' messages and acknowledgements for each of 64 ranks, and a send's
// more (see ep_core/csrc/cuda/ports.cuh), so that no kernel ever waits for room.
constexpr int kQueue = 1024;

std::function<void()> begin_thread(int device) {
  return [device] {
    MSCCLPP_CUDATHROW(cudaSetDevice(device));
    const int node = mscclpp::getDeviceNumaNode(device);
    if (node >= 0) mscclpp::numaBind(node);
  };
}

}  // namespace

ProxyThread::ProxyThread(int device, std::int64_t flush_timeout_us)
    : flush_timeout_us_(flush_timeout_us),
      shared_(std::make_shared<mscclpp::Proxy>([this](mscclpp::ProxyTrigger trigger) { return handle(trigger); },
                                               begin_thread(device), kQueue)),
      proxy_(*shared_) {}

mscclpp::PortChannel ProxyThread::add(const mscclpp::Semaphore& semaphore, const mscclpp::RegisteredMemory& target,
                                      const mscclpp::RegisteredMemory& source) {
  const auto number = static_cast<mscclpp::SemaphoreId>(lines_.size());
  lines_.push_back({std::make_shared<mscclpp::Host2DeviceSemaphore>(semaphore)});
  const auto first = static_cast<mscclpp::MemoryId>(memories_.size());
  memories_.push_back(target);
  memories_.push_back(source);
  return {number, lines_.back().semaphore, shared_, first, first + 1};
}

std::string ProxyThread::failure() const {
  const std::lock_guard lock(failing_);
  return failure_;
}

mscclpp::ProxyHandlerResult ProxyThread::handle(const mscclpp::ProxyTrigger& trigger) {
  try {
    carry_out(trigger);
    return mscclpp::ProxyHandlerResult::Continue;
  } catch (const std::exception& error) {
    const std::lock_guard lock(failing_);
    failure_ = error.what();
    return mscclpp::ProxyHandlerResult::Stop;
  }
}

void ProxyThread::carry_out(const mscclpp::ProxyTrigger& trigger) {
  Line& line = lines_.at(trigger.fields.semaphoreId);
  mscclpp::Connection& connection = line.semaphore->connection();
  if ((trigger.fields.type & mscclpp::TriggerData) != 0) {
    connection.write(memories_.at(trigger.fields.dstMemoryId), trigger.fields.dstOffset,
                     memories_.at(trigger.fields.srcMemoryId), trigger.fields.srcOffset, trigger.fields.size);
    ++line.requests;
  }
  // After the data on every transport: one queue pair, one stream, one socket.
  if ((trigger.fields.type & mscclpp::TriggerFlag) != 0) {
    line.semaphore->signal();
    ++line.requests;
  }
  const int most = connection.getMaxWriteQueueSize();
  if (most > 0 && line.requests + 2 > most) {
    connection.flush(flush_timeout_us_);
    line.requests = 0;
  }
}

}  // namespace ep_core
