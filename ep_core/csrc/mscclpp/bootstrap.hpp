// What MSCCL++ needs before ranks can reach each other's memory: a way to send messages, and a server of descriptors.
// Used by transport.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mscclpp/core.hpp>
#include <mutex>
#include <string>
#include <string_view>

namespace ep_core {

// MSCCL++'s bootstrap over messages that the caller carries (ep_core/messages.py), each wait with a deadline.
//
// TcpBootstrap would not do between ranks: once connected it waits, spinning, without a deadline and without a word of
// whom for, and a peer that dies while it connects ends the process of rank 0, whose thread lets the exception go.
class CarriedBootstrap final : public mscclpp::Bootstrap {
 public:
  using Send = std::function<void(std::string_view message, int peer, int tag)>;
  // Gives the next message from `peer`, or throws at the deadline.
  using Receive = std::function<std::string(int peer, int tag)>;

  CarriedBootstrap(int rank, int ranks, Send send, Receive receive);

  int getRank() const override { return rank_; }
  int getNranks() const override { return ranks_; }
  // The ranks of a buffer can map each other's memory, and that is what a node is.
  int getNranksPerNode() const override { return ranks_; }
  using mscclpp::Bootstrap::recv;
  using mscclpp::Bootstrap::send;
  void send(void* data, int size, int peer, int tag) override;
  void recv(void* data, int size, int peer, int tag) override;
  void allGather(void* all, int size) override;
  void barrier() override;

 private:
  int rank_;
  int ranks_;
  Send send_;
  Receive receive_;
};

// Hands out descriptors of this process's GPU memory while peers map it.
//
// MSCCL++ starts its server with a TcpBootstrap and with nothing else, so this holds one that knows only itself. The
// server's thread would end the process if it still ran when the process exits: stop it when every peer has mapped.
// Stopped, it leaves no socket behind in /tmp.
class DescriptorServer {
 public:
  // timeout_s: for the bootstrap to reach itself.
  explicit DescriptorServer(std::int64_t timeout_s);
  // May be called twice, and from any thread.
  void stop();

 private:
  std::mutex stopping_;
  std::unique_ptr<mscclpp::TcpBootstrap> alone_;
};

}  // namespace ep_core
