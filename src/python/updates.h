// The way of a request's news from the engine's thread to Python: a queue that the engine fills
// without the interpreter's lock, and a thread of Python's empties.
//
// The engine never waits for the interpreter, nor can it be kept from ending by a thread that
// holds the lock and waits for it.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "whit/types.h"

namespace whit::python {

struct News : RequestUpdate {
  uint64_t request_id = 0;  // as the caller counts
};

class Updates {
 public:
  void put(uint64_t request_id, RequestUpdate update) {
    {
      const std::lock_guard lock(mutex_);
      News news;
      static_cast<RequestUpdate&>(news) = std::move(update);
      news.request_id = request_id;
      news_.push_back(std::move(news));
    }
    came_.notify_one();
  }

  // Waits for news and takes them all, oldest first; none: closed, and nothing is left.
  std::vector<News> take() {
    std::unique_lock lock(mutex_);
    came_.wait(lock, [&] { return closed_ || !news_.empty(); });
    return std::exchange(news_, {});
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    came_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<News> news_;
  bool closed_ = false;
};

// What Python holds. The engine shares the queue, not this object, which it could not release
// without the interpreter's lock.
struct UpdatesHandle {
  std::shared_ptr<Updates> queue = std::make_shared<Updates>();
};

}  // namespace whit::python
