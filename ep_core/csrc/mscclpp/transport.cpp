#include "transport.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <mscclpp/gpu_utils.hpp>
#include <mscclpp/utils.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace ep_core {
namespace {

using mscclpp::Communicator;
using mscclpp::CudaDeviceGuard;

constexpr std::chrono::seconds kStop(5);  // for the proxies to end

// The transport between nodes for a GPU; of several InfiniBand devices each GPU takes one, in turn.
mscclpp::Transport transport_of(const std::string& name, int device) {
  if (name == "ethernet") return mscclpp::Transport::Ethernet;
  if (name == "ipc") return mscclpp::Transport::CudaIpc;
  if (name != "ib") throw std::invalid_argument("transport: wanted ib, ethernet or ipc, got " + name);
  const int devices = std::min(ib_devices(), 8);
  if (devices == 0) throw std::invalid_argument("transport: MSCCL++ finds no InfiniBand device here");
  return static_cast<mscclpp::Transport>(static_cast<int>(mscclpp::Transport::IB0) + device % devices);
}

// False after an error that every further call on the device repeats, such as an illegal access by a kernel.
bool device_answers(int device) {
  try {
    const CudaDeviceGuard guard(device);
    const mscclpp::CudaStreamWithFlags probe(cudaStreamNonBlocking);
    return true;
  } catch (const mscclpp::BaseError&) {
    return false;
  }
}

}  // namespace

Transport::Transport(std::shared_ptr<mscclpp::Bootstrap> bootstrap, DescriptorServer& server, void* base,
                     std::size_t size, int device, Nodes nodes)
    : device_(device), nodes_(std::move(nodes)) {
  const CudaDeviceGuard guard(device);
  communicator_ = std::make_unique<Communicator>(std::move(bootstrap));
  try {
    connect(base, size);
  } catch (...) {
    // Before the members give up their descriptors: the server's thread ends the process over one it does not know.
    server.stop();
    close();
    throw;
  }
}

bool Transport::near(int peer) const {
  if (nodes_.node_of.empty()) return true;
  const int rank = communicator_->bootstrap()->getRank();
  return nodes_.node_of.at(static_cast<std::size_t>(peer)) == nodes_.node_of.at(static_cast<std::size_t>(rank));
}

void Transport::connect(void* base, std::size_t size) {
  const int rank = communicator_->bootstrap()->getRank();
  const int ranks = communicator_->bootstrap()->getNranks();
  const bool ports = !nodes_.node_of.empty();
  entries_.resize(static_cast<std::size_t>(ranks));
  const auto each_peer = [&](const auto& act) {
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer != rank) act(peer, entries_[static_cast<std::size_t>(peer)]);
    }
  };

  Entry& own = entries_[static_cast<std::size_t>(rank)];
  own.memory = communicator_->registerMemory(base, size, mscclpp::Transport::CudaIpc);
  const mscclpp::Device here(mscclpp::DeviceType::GPU, device_);
  // Memory that a transport between nodes reaches is registered with it alone: a handle for mapping would be opened on
  // a machine that cannot.
  const mscclpp::Transport between = ports ? transport_of(nodes_.transport, device_) : mscclpp::Transport::CudaIpc;
  const mscclpp::RegisteredMemory own_between =
      between == mscclpp::Transport::CudaIpc ? own.memory : communicator_->registerMemory(base, size, between);
  const auto own_for = [&](int peer) { return near(peer) ? own.memory : own_between; };

  std::vector<std::shared_future<mscclpp::RegisteredMemory>> memories(entries_.size());
  std::vector<std::shared_future<mscclpp::Connection>> connections(entries_.size());
  std::vector<std::shared_future<mscclpp::Semaphore>> semaphores(entries_.size());
  std::vector<std::shared_future<mscclpp::Semaphore>> port_semaphores(entries_.size());
  each_peer([&](int peer, Entry&) {
    const auto at = static_cast<std::size_t>(peer);
    communicator_->sendMemory(own_for(peer), peer);
    memories[at] = communicator_->recvMemory(peer);
    const mscclpp::Transport transport = near(peer) ? mscclpp::Transport::CudaIpc : between;
    connections[at] = communicator_->connect(mscclpp::EndpointConfig(transport, here), peer);
  });
  each_peer([&](int peer, Entry& entry) {
    const auto at = static_cast<std::size_t>(peer);
    entry.memory = memories[at].get();
    if (entry.memory.size() != size) {
      throw std::invalid_argument("size: rank " + std::to_string(peer) + " has a segment of " +
                                  std::to_string(entry.memory.size()) + " bytes, this rank of " + std::to_string(size) +
                                  ": give the same on all ranks");
    }
    entry.connection = connections[at].get();
    semaphores[at] = communicator_->buildSemaphore(entry.connection, peer);
    if (ports) port_semaphores[at] = communicator_->buildSemaphore(entry.connection, peer);
  });
  for (int i = 0; ports && i < nodes_.proxies; ++i) {
    proxies_.push_back(std::make_shared<ProxyThread>(device_, static_cast<std::int64_t>(nodes_.timeout_s * 1e6)));
  }
  std::size_t next = 0;
  each_peer([&](int peer, Entry& entry) {
    const auto at = static_cast<std::size_t>(peer);
    entry.semaphore = semaphores[at].get();
    if (near(peer)) entry.channel.emplace(entry.semaphore, entry.memory, own.memory);
    if (!ports) return;
    entry.port_semaphore = port_semaphores[at].get();
    // Ranks of this node have a channel that is not used, so they take no part in sharing out the proxies.
    ProxyThread& proxy = *proxies_[near(peer) ? 0 : next++ % proxies_.size()];
    entry.port.emplace(proxy.add(entry.port_semaphore, entry.memory, own_for(peer)));
  });
  for (const auto& proxy : proxies_) proxy->start();
}

std::vector<std::string> Transport::port_handles() const {
  std::vector<std::string> found(entries_.size());
  for (std::size_t rank = 0; rank < entries_.size(); ++rank) {
    if (!entries_[rank].port.has_value()) continue;
    const mscclpp::PortChannelDeviceHandle handle = entries_[rank].port->deviceHandle();
    found[rank].assign(reinterpret_cast<const char*>(&handle), sizeof handle);
  }
  return found;
}

std::string Transport::failure() const {
  for (const auto& proxy : proxies_) {
    if (const std::string found = proxy->failure(); !found.empty()) return found;
  }
  return "";
}

bool Transport::stop_proxies() {
  if (proxies_.empty()) return true;
  // A thread of its own, since a proxy that sends to a peer that takes nothing ends when the network gives up.
  auto stopped = std::make_shared<std::promise<void>>();
  std::future<void> done = stopped->get_future();
  std::thread([proxies = proxies_, stopped] {
    for (const auto& proxy : proxies) proxy->stop();
    stopped->set_value();
  }).detach();
  return done.wait_for(kStop) == std::future_status::ready;
}

std::vector<std::uintptr_t> Transport::addresses() const {
  std::vector<std::uintptr_t> found;
  found.reserve(entries_.size());
  for (int peer = 0; peer < static_cast<int>(entries_.size()); ++peer) {
    const mscclpp::RegisteredMemory& memory = entries_[static_cast<std::size_t>(peer)].memory;
    found.push_back(near(peer) ? reinterpret_cast<std::uintptr_t>(memory.data()) : 0);
  }
  return found;
}

void Transport::close() {
  if (communicator_ == nullptr) return;
  const bool stopped = stop_proxies();
  auto proxies = std::make_unique<std::vector<std::shared_ptr<ProxyThread>>>(std::move(proxies_));
  auto entries = std::make_unique<std::vector<Entry>>(std::move(entries_));
  proxies_.clear();
  entries_.clear();
  if (stopped && device_answers(device_)) {
    const CudaDeviceGuard guard(device_);
    // A channel keeps its proxy, which keeps the queue.
    entries.reset();
    proxies.reset();
    communicator_.reset();
    return;
  }
  // MSCCL++ frees semaphores with calls that throw from destructors, which would end the process. What hangs on a lost
  // device, or in a proxy that does not end, is left to the process's end.
  abandon();
  static_cast<void>(proxies.release());
  static_cast<void>(entries.release());
  static_cast<void>(communicator_.release());
}

int ib_devices() {
  try {
    return mscclpp::getIBDeviceCount();
  } catch (const std::exception&) {
    return 0;  // its library of verbs is not there
  }
}

void abandon() {
  static const int once = on_exit(
      [](int status, void*) {
        std::fflush(nullptr);
        _exit(status);
      },
      nullptr);
  static_cast<void>(once);
}

}  // namespace ep_core
