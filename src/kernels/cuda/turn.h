// The turns that streams of one process take on its GPU.
//
// Blocks of a decode attention (sm90/attention_decode) wait for others of their kernel, and so must
// all find a place on the GPU. Of two such kernels side by side each could hold the places that the
// other's blocks need, for ever. So whoever may enqueue one takes a turn for it.
#pragma once

#include <mutex>

struct CUstream_st;

namespace whit::cuda {

// While the lock is held nobody else's is; what is then enqueued on `stream` runs after all that
// was enqueued in earlier turns. Where one stream has them all nothing is waited for.
[[nodiscard]] std::unique_lock<std::mutex> take_turn(CUstream_st* stream);

// Before a stream is destroyed: waits for what it has enqueued.
void leave_turns(CUstream_st* stream) noexcept;

}  // namespace whit::cuda
