#include "engine/weight_packer.h"

#include <algorithm>
#include <atomic>

#include "base/checked.h"
#include "kernels/cpu/lay_out.h"

namespace whit {
namespace {

// Packed bytes of a piece: some tens of microseconds of work, next to which drawing it costs
// nothing, and small enough that all threads end at about the same time.
constexpr int64_t kPieceBytes = 256 << 10;
// Pieces that a thread may be ahead of another: a weight's source stays resident until both are
// past.
constexpr size_t kMostAhead = 8;

}  // namespace

int WeightPacker::add(const cpu::LinearKernel& kernel, std::vector<WeightView> parts,
                      std::string name, std::function<void()> done) {
  packed_.push_back(cpu::lay_out(kernel, parts));
  jobs_.push_back({std::move(parts), std::move(name), std::move(done)});
  return static_cast<int>(jobs_.size()) - 1;
}

std::vector<cpu::PackedWeight> WeightPacker::pack(ThreadPool& pool) && {
  struct Piece {
    int job, index, count;
  };
  struct Share {
    std::vector<Piece> pieces;
    std::atomic<size_t> next{0};
  };
  std::vector<int64_t> bytes;
  for (const cpu::PackedWeight& packed : packed_) bytes.push_back(packed.payload_bytes);
  std::vector<Buffer> memory = Buffer::side_by_side(bytes);
  std::vector<Share> shares(pool.size());
  std::vector<std::atomic<int>> left(jobs_.size());
  for (int job = 0; job < static_cast<int>(jobs_.size()); ++job) {
    cpu::PackedWeight& packed = packed_[job];
    packed.data = std::move(memory[job]);
    const auto each =
        static_cast<int>(ceil_div(packed.payload_bytes, kPieceBytes * int64_t{pool.size()}));
    const int count = each * pool.size();
    left[job] = count;
    for (int index = 0; index < count; ++index)
      shares[index / each].pieces.push_back({job, index, count});
  }
  // The share that a worker draws its next piece from; null when all are drawn.
  const auto share_for = [&](const Worker& worker) -> Share* {
    Share* last = &*std::min_element(
        shares.begin(), shares.end(),
        [](const Share& a, const Share& b) { return a.next.load() < b.next.load(); });
    if (last->next.load() >= last->pieces.size()) return nullptr;
    Share& own = shares[worker.index];
    const size_t at = own.next.load();
    return at < own.pieces.size() && at <= last->next.load() + kMostAhead ? &own : last;
  };
  pool.run([&](const Worker& worker) {
    while (Share* share = share_for(worker)) {
      const size_t at = share->next.fetch_add(1);
      if (at >= share->pieces.size()) continue;
      const auto [job, index, count] = share->pieces[at];
      try {
        packed_[job].kernel->pack(jobs_[job].parts, packed_[job], Worker{index, count});
      } catch (const Error& error) {
        throw Error(error.kind(), "{}: {}", jobs_[job].name, error.what());
      }
      if (left[job].fetch_sub(1) == 1 && jobs_[job].done) jobs_[job].done();
    }
  });
  jobs_.clear();
  return std::move(packed_);
}

}  // namespace whit
