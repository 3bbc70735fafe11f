#include "transport.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <future>
#include <mscclpp/gpu_utils.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace ep_core {
namespace {

using mscclpp::Communicator;
using mscclpp::CudaDeviceGuard;

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
                     std::size_t size, int device)
    : device_(device) {
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

void Transport::connect(void* base, std::size_t size) {
  const int rank = communicator_->bootstrap()->getRank();
  const int ranks = communicator_->bootstrap()->getNranks();
  entries_.resize(static_cast<std::size_t>(ranks));
  const auto each_peer = [&](const auto& act) {
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer != rank) act(peer, entries_[static_cast<std::size_t>(peer)]);
    }
  };

  Entry& own = entries_[static_cast<std::size_t>(rank)];
  own.memory = communicator_->registerMemory(base, size, mscclpp::Transport::CudaIpc);
  const mscclpp::EndpointConfig endpoint(mscclpp::Transport::CudaIpc,
                                         mscclpp::Device(mscclpp::DeviceType::GPU, device_));

  std::vector<std::shared_future<mscclpp::RegisteredMemory>> memories(entries_.size());
  std::vector<std::shared_future<mscclpp::Connection>> connections(entries_.size());
  std::vector<std::shared_future<mscclpp::Semaphore>> semaphores(entries_.size());
  each_peer([&](int peer, Entry&) {
    const auto at = static_cast<std::size_t>(peer);
    communicator_->sendMemory(own.memory, peer);
    memories[at] = communicator_->recvMemory(peer);
    connections[at] = communicator_->connect(endpoint, peer);
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
  });
  each_peer([&](int peer, Entry& entry) {
    entry.semaphore = semaphores[static_cast<std::size_t>(peer)].get();
    entry.channel.emplace(entry.semaphore, entry.memory, own.memory);
  });
}

std::vector<std::uintptr_t> Transport::addresses() const {
  std::vector<std::uintptr_t> found;
  found.reserve(entries_.size());
  for (const Entry& entry : entries_) found.push_back(reinterpret_cast<std::uintptr_t>(entry.memory.data()));
  return found;
}

void Transport::close() {
  if (communicator_ == nullptr) return;
  auto entries = std::make_unique<std::vector<Entry>>(std::move(entries_));
  entries_.clear();
  if (device_answers(device_)) {
    const CudaDeviceGuard guard(device_);
    entries.reset();
    communicator_.reset();
    return;
  }
  // MSCCL++ frees semaphores with calls that throw from destructors, which would end the process. What hangs on a lost
  // device is the driver's to clean up.
  abandon();
  static_cast<void>(entries.release());
  static_cast<void>(communicator_.release());
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
