#include "told.hpp"

#include <atomic>

#include "high_throughput.hpp"

namespace ep_core::cuda {
namespace {

constexpr std::uint32_t kDeadline = 1;
constexpr std::uint32_t kNotAlike = 2;
constexpr std::uint32_t kWrongExpert = 3;

std::string listed(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

std::string wrong_text(const Failure& failure, const std::vector<int>& ranks) {
  const std::string what = std::to_string(failure.what);
  const std::string where = std::to_string(failure.where);
  switch (failure.code) {
    case kNotAlike:
      return "rank " + listed(ranks) +
             " called another operation than this rank, or with other sizes or options (tokens at most, hidden, "
             "experts, "
             "top-k, fp8, round_scale, topk_weights); all ranks must call alike";
    case kWrongExpert:
      if (failure.where < 0) {
        return "topk_idx: expert " + what +
               " is selected more often than num_max_dispatch_tokens_per_rank by this rank, which is all its receive "
               "buffer holds";
      }
      return failure.phase == Phase::combine
                 ? "topk_idx (flat index " + where + "): expert " + what +
                       " is no expert, or got no such row from this token at dispatch"
                 : "topk_idx (flat index " + where + "): wanted -1 or an expert below num_experts, got " + what;
    case static_cast<std::uint32_t>(Wrong::room):
      return "num_worst_tokens: rank " + listed(ranks) + " receives " + what + " rows, which has space for " + where;
    case static_cast<std::uint32_t>(Wrong::rank):
      return "topk_idx (flat index " + where + "): expert " + what +
             " is on a rank to which is_token_in_rank does not send the token";
    case static_cast<std::uint32_t>(Wrong::counts):
      return "num_tokens_per_rank: says " + what + " tokens for rank " + where + ", is_token_in_rank says otherwise";
    case static_cast<std::uint32_t>(Wrong::handle):
      return "handle: its parts do not belong together, or x has fewer rows than they say; give the handle that "
             "dispatch "
             "returned, unchanged";
    default:
      return "a kernel has failed with code " + std::to_string(failure.code);
  }
}

}  // namespace

std::optional<Told> told(const Segment& segment) {
  const volatile Failure& shared = segment.failure();
  const std::uint32_t code = shared.code;
  if (code == 0) return std::nullopt;
  std::atomic_thread_fence(std::memory_order_acquire);
  const Failure failure = const_cast<const Failure&>(shared);
  std::vector<int> ranks;
  for (int rank = 0; rank < segment.world().ranks; ++rank) {
    if (failure.missing[rank] != 0) ranks.push_back(rank);
  }
  const char* phase = failure.phase == Phase::dispatch ? "dispatch" : "combine";
  const double waited_s = static_cast<double>(failure.waited_ns) * 1e-9;
  if (code == kDeadline) return Told{phase, 1, ranks, waited_s, ""};
  const std::string text = wrong_text(failure, ranks);
  return Told{phase, 2, ranks, waited_s, text};
}

}  // namespace ep_core::cuda
