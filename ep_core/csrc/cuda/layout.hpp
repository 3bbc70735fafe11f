// What lies where in a rank's symmetric segment on the GPU, and what its words mean. Plain C++, for host and device.
//
// A segment is [Control | low-latency region, rdma_bytes | high-throughput ring, nvl_bytes], one cudaMalloc; every rank
// maps all of them and writes into its peers' (push). A region is [words | payload]. Words are 64 bits, have one writer
// each, and carry the epoch of their operation in the low 32 bits, so a word that an earlier operation left there,
// under whatever sizes, never passes for a new one; payload never lies where words lie. Nothing needs to be cleared.
//
// Epochs count the operations of a lane (low latency, high throughput, high throughput's notify), on the device: see
// `begin` in device.cuh. Operation e of the low-latency lane uses half e % 2 of its region; the ring has one half. A
// rank writes epoch e into a half only after every peer has acknowledged the epoch that was there before. Operations of
// different sizes may follow each other without a pause, so the halves of all sizes that fit must keep clear of each
// other: half 0 begins where the payload does, half 1 ends where it ends.
//
// Next to read: device.cuh, then low_latency_dispatch.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define EP_HOST_DEVICE __host__ __device__
#else
#define EP_HOST_DEVICE
#endif

namespace ep_core::cuda {

constexpr int kMaxRanks = 64;
constexpr int kMaxTopk = 32;
constexpr int kMaxExperts = 1024;
constexpr int kMaxHidden = 16384;
constexpr int kScaleBlock = 128;  // columns that share one fp8 scale
constexpr int kPackBits = 20;     // of a row's position among an expert's rows of one source
constexpr int kMostTokens = 1 << kPackBits;
constexpr int kMostChunks = 16;  // pieces of a row that have flags of their own
constexpr std::size_t kPage = 4096;
constexpr std::int64_t kWordShare = 16;  // one part in so many of a region is for words

enum Lane : int { kLowLatency = 0, kHighThroughput = 1, kNotify = 2, kLanes = 3 };
enum class Phase : std::uint32_t { dispatch = 1, combine = 2 };

EP_HOST_DEVICE constexpr std::int64_t align_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}
EP_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit;
}

// Fixed places at the start of a segment. [peer]: written by that peer, in this rank's segment.
struct Control {
  std::uint64_t call[kLanes][2][kMaxRanks];       // [epoch % 2], signature << 32 | epoch: the operation that it is in
  std::uint64_t ack[kLanes][2][kMaxRanks];        // the last epoch of this half that it has done with
  std::uint64_t counts[2][kMaxRanks][kMaxRanks];  // notify: [source][destination] rows << 32 | epoch
  std::uint64_t expert_counts[2][kMaxRanks][kMaxExperts];  // notify: [source][local expert] rows << 32 | epoch
  std::uint64_t rooms[2][kMaxRanks];                       // notify: rows that it has space for, 0 any << 32 | epoch

  // The rank's own; no peer reads or writes them.
  unsigned long long tickets[kLanes];  // see `begin`
  std::uint64_t consumed[kLanes][2];   // to be acknowledged by the next operation
  std::uint32_t broken;                // a wait has failed: nobody waits any more

  // Low latency with other nodes, see ports.cuh; the rank's own too.
  unsigned long long posted;        // blocks that have made their part of the messages, like a ticket
  std::uint32_t pieces[kMaxRanks];  // in the message being made for that rank
  std::uint64_t told[2];            // acknowledgements that messages have carried
  std::uint64_t early[2];           // those that go ahead of a message; what is put lies here
  std::int64_t inbox[2];            // where the messages of the half's last operation come in, from the base
  std::int64_t inbox_stride[2];
};

// What a kernel tells the host, in pinned host memory. `code` is written last, with release at system scope.
struct Failure {
  std::uint32_t code;  // 0 none, 1 a deadline passed, 2 ranks did not call alike, 3 a wrong expert, from 4 on `Wrong`
  Phase phase;
  std::uint64_t missing[kMaxRanks];  // not 0: awaited
  std::uint64_t waited_ns;
  std::int64_t what;   // code 2: the awaited rank's signature; 3: the expert
  std::int64_t where;  // code 2: this rank's signature; 3: flat index into topk_idx, or -1: selected too often
};

// How many rows go where; notify's answer in pinned host memory. `epoch` is written last, with release.
struct Counts {
  std::uint64_t epoch;
  std::int64_t received;
  std::int64_t per_expert[kMaxExperts];
};

// A row's pieces: `chunks` of `columns` columns each, the last one shorter.
struct Chunks {
  int count;
  int columns;

  EP_HOST_DEVICE int of(int chunk, int hidden) const {
    const int left = hidden - chunk * columns;
    return left < columns ? left : columns;
  }
};

// As many chunks of at most `most` columns (a multiple of 128) as a row needs.
EP_HOST_DEVICE constexpr Chunks chunks_of(int hidden, int most) {
  const int count = static_cast<int>(ceil_div(hidden, most));
  const int columns = static_cast<int>(align_up(ceil_div(hidden, count), kScaleBlock));
  return {static_cast<int>(ceil_div(hidden, columns)), columns};
}
constexpr int kDispatchColumns = 2048;
constexpr int kCombineColumns = 1024;

struct LowLatencySizes {
  int max_tokens;
  int hidden;
  int experts;
};

// Byte offsets within the low-latency region.
struct LowLatencyLayout {
  // Within one half's words.
  std::int64_t selections;  // dispatch: [source][token][k], see `Selection` in low_latency.cuh
  std::int64_t weights;     // dispatch with weights: [source][token][k] float32 << 32 | epoch
  std::int64_t flags;       // [source][token][chunk]: epoch, the row's chunk is there
  std::int64_t word_bytes;  // wanted for one half
  // Of the region.
  std::int64_t word_stride;  // from half to half
  std::int64_t payload;      // of half 0
  std::int64_t stage_bytes;  // of one staged dispatch row
  std::int64_t half_bytes;   // wanted for one half's payload
  std::int64_t payload_stride;

  // messages: what those between nodes take of a half, at its end (ports.hpp).
  EP_HOST_DEVICE LowLatencyLayout(const LowLatencySizes& sizes, int ranks, std::int64_t region_bytes,
                                  std::int64_t messages = 0) {
    const std::int64_t tokens = sizes.max_tokens;
    const std::int64_t all = ranks * tokens;
    selections = 0;
    weights = selections + all * kMaxTopk * 8;
    flags = weights + all * kMaxTopk * 8;
    word_bytes = align_up(flags + all * kMostChunks * 8, 128);
    const std::int64_t words = region_bytes / kWordShare / kPage * kPage;
    word_stride = words / 2 / 128 * 128;
    payload = words;
    const std::int64_t row = 2ll * sizes.hidden;
    // Quantised rows with their scales are shorter from 8 columns on.
    stage_bytes = align_up(row, 128) + 16 * kMostChunks;
    const std::int64_t dispatch = all * stage_bytes;
    const std::int64_t exact = tokens * kMaxTopk * row;
    const std::int64_t reduced = all * row;
    half_bytes = align_up(
        dispatch > exact ? (dispatch > reduced ? dispatch : reduced) : (exact > reduced ? exact : reduced), kPage);
    half_bytes += messages;
    payload_stride = region_bytes / kPage * kPage - half_bytes - payload;
  }

  // The least region for these sizes.
  static std::int64_t least_bytes(const LowLatencySizes& sizes, int ranks, std::int64_t messages = 0) {
    const LowLatencyLayout at(sizes, ranks, 0, messages);
    const std::int64_t by_words = (2 * at.word_bytes + kPage) * kWordShare;
    const std::int64_t by_payload = (2 * at.half_bytes + kPage) * kWordShare / (kWordShare - 1) + kPage;
    return align_up(by_words > by_payload ? by_words : by_payload, kPage);
  }
};

// The high-throughput ring: from each source `places` places of `place_bytes`, used in turn by the rows it sends here.
// Row j of an operation takes place j % places in lap j / places.
struct RingLayout {
  std::int64_t places;
  std::int64_t flags;    // words: [source][place], lap << 32 | epoch: the row is there; written by the source
  std::int64_t credits;  // words: [destination][place], lap << 32 | epoch: the destination has taken that row of ours
  std::int64_t payload;  // [source][place]
  std::int64_t place_bytes;

  EP_HOST_DEVICE RingLayout(std::int64_t place_bytes_, int ranks, std::int64_t ring_bytes) : place_bytes(place_bytes_) {
    const std::int64_t words = ring_bytes / kWordShare / kPage * kPage;
    payload = words;
    const std::int64_t by_words = words / (16 * ranks);
    const std::int64_t by_payload = (ring_bytes - words) / (ranks * place_bytes);
    places = by_words < by_payload ? by_words : by_payload;
    flags = 0;
    credits = places * ranks * 8;
  }

  // The least ring in which such rows go at all; one place from each source.
  static std::int64_t least_bytes(std::int64_t place_bytes, int ranks) {
    const std::int64_t by_words = (16 * ranks + kPage) * kWordShare;
    const std::int64_t by_payload = (ranks * place_bytes + kPage) * kWordShare / (kWordShare - 1) + kPage;
    return align_up(by_words > by_payload ? by_words : by_payload, kPage);
  }
};

constexpr std::int64_t kControlBytes = align_up(sizeof(Control), kPage);

}  // namespace ep_core::cuda
