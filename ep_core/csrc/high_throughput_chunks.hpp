// What dispatch and combine of high_throughput.hpp both need to cut rows into chunks.
#pragma once

#include <cstdint>

namespace ep_core {

// What travels in front of a row: scales, then top-k, then weights.
constexpr std::int64_t head_bytes(std::int64_t scales, std::int64_t topk_words) { return 4 * (scales + topk_words); }

constexpr std::int64_t chunks_of(std::int64_t tokens, std::int64_t chunk_tokens) {
  return (tokens + chunk_tokens - 1) / chunk_tokens;
}

}  // namespace ep_core
