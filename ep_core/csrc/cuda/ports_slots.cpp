#include <algorithm>

#include "errors.hpp"
#include "ports_face.hpp"

namespace ep_core::cuda {
namespace {

// How many ranks before `end` are on another node than `rank`.
int others_before(int rank, int end, const std::vector<int>& node_of) {
  const int mine = node_of.at(static_cast<std::size_t>(rank));
  return static_cast<int>(
      std::count_if(node_of.begin(), node_of.begin() + end, [&](int node) { return node != mine; }));
}

}  // namespace

SlotsOfRank::SlotsOfRank(int rank, const std::vector<int>& node_of) {
  const int ranks = static_cast<int>(node_of.size());
  if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks) {
    throw WrongArgument("node_of: wanted from 1 to " + std::to_string(kMaxRanks) + " ranks with this one among them");
  }
  for (int peer = 0; peer < ranks; ++peer) {
    most = std::max(most, others_before(peer, ranks, node_of));
    const bool far = node_of[static_cast<std::size_t>(peer)] != node_of[static_cast<std::size_t>(rank)];
    if (far) remote |= 1ull << peer;
    here.push_back(far ? others_before(rank, peer, node_of) : -1);
    there.push_back(far ? others_before(peer, rank, node_of) : -1);
  }
}

}  // namespace ep_core::cuda
