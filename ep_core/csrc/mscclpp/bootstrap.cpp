#include "bootstrap.hpp"

#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ep_core {
namespace {

// MSCCL++'s own messages between two ranks carry tags from 0.
constexpr int kCollectiveTag = -1;

}  // namespace

CarriedBootstrap::CarriedBootstrap(int rank, int ranks, Send send, Receive receive)
    : rank_(rank), ranks_(ranks), send_(std::move(send)), receive_(std::move(receive)) {}

void CarriedBootstrap::send(void* data, int size, int peer, int tag) {
  send_(std::string_view(static_cast<const char*>(data), static_cast<std::size_t>(size)), peer, tag);
}

void CarriedBootstrap::recv(void* data, int size, int peer, int tag) {
  const std::string message = receive_(peer, tag);
  if (message.size() != static_cast<std::size_t>(size)) {
    throw std::runtime_error("MSCCL++: rank " + std::to_string(peer) + " sent " + std::to_string(message.size()) +
                             " bytes where " + std::to_string(size) +
                             " were expected: use one version of MSCCL++ on all ranks");
  }
  std::memcpy(data, message.data(), message.size());
}

void CarriedBootstrap::allGather(void* all, int size) {
  char* const parts = static_cast<char*>(all);
  const auto part = [&](int rank) { return parts + static_cast<std::ptrdiff_t>(rank) * size; };
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer != rank_) send(part(rank_), size, peer, kCollectiveTag);
  }
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer != rank_) recv(part(peer), size, peer, kCollectiveTag);
  }
}

void CarriedBootstrap::barrier() {
  std::vector<char> here(static_cast<std::size_t>(ranks_));
  allGather(here.data(), 1);
}

DescriptorServer::DescriptorServer(std::int64_t timeout_s) : alone_(std::make_unique<mscclpp::TcpBootstrap>(0, 1)) {
  alone_->initialize(mscclpp::TcpBootstrap::createUniqueId(), timeout_s);
}

void DescriptorServer::stop() {
  const std::lock_guard lock(stopping_);
  alone_.reset();
}

}  // namespace ep_core
