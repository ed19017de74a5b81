// Threads of one engine. The caller works too, so a pool of n has n − 1 threads of its own; they spin for a moment
// between jobs, because the next layer mostly comes at once, and then sleep. A worker that the system keeps waiting is
// not waited for: it joins a job late, or not at all, and the others do its tasks. Of equal jobs a thread does the same
// tasks each time, as far as it comes in time: what it wrote in one layer it then finds in its own cache in the next.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace secateur {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return threads_; }

  // Runs task(i, thread) for each i below n, each once, and returns when all are done; thread < size(). Tasks must
  // not throw. In a child of fork(), which has none of the threads, it starts others first.
  void run(int64_t n, const std::function<void(int64_t task, int thread)>& task);

 private:
  // The threads, and all that they share with the caller.
  class Crew {
   public:
    explicit Crew(int threads);
    ~Crew();
    void run(int64_t n, const std::function<void(int64_t, int)>& task);

   private:
    void work(int thread);
    void take_tasks(int thread);
    void stop();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> open_{0};  // the job that may be joined; 0: none
    std::atomic<int> joined_{0};     // workers that are in it
    std::atomic<bool> stop_{false};
    // The tasks of one thread that are left; on a cache line of its own.
    struct alignas(64) Range {
      std::atomic<int64_t> next{0};
      int64_t end = 0;
    };
    std::vector<Range> ranges_;
    uint64_t last_job_ = 0;
    const std::function<void(int64_t, int)>* task_ = nullptr;
  };

  bool is_inherited() const;

  int threads_;
  uint64_t generation_;  // of the process that started the crew
  std::unique_ptr<Crew> crew_;
};

}  // namespace secateur
