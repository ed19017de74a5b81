#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <new>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace secateur {

namespace {

void rest() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `done`, for at most about 50 µs; whether it came to be.
template <typename Done>
bool spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  for (;;) {
    for (int i = 0; i < 100; i++) {
      if (done()) return true;
      rest();
    }
    if (std::chrono::steady_clock::now() > end) return false;
  }
}

// How many forks lie between the first process and this one.
std::atomic<uint64_t> generation{0};

uint64_t this_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1); });
  (void)registered;
  return generation.load(std::memory_order_relaxed);
}

}  // namespace

Pool::Crew::Crew(int threads) : ranges_(size_t(threads)) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {  // the system starts no more of them
    stop();
    throw std::bad_alloc();
  } catch (...) {
    stop();
    throw;
  }
}

Pool::Crew::~Crew() { stop(); }

void Pool::Crew::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// Its own tasks first, then what others have not begun.
void Pool::Crew::take_tasks(int thread) {
  const size_t n = ranges_.size();
  for (size_t k = 0; k < n; k++) {
    Range& range = ranges_[(size_t(thread) + k) % n];
    for (;;) {
      const int64_t i = range.next.fetch_add(1, std::memory_order_relaxed);
      if (i >= range.end) break;
      (*task_)(i, thread);
    }
  }
}

void Pool::Crew::work(int thread) {
  uint64_t seen = 0;
  const auto called = [&] {
    const uint64_t job = open_.load();
    return (job != 0 && job != seen) || stop_.load();
  };
  for (;;) {
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (stop_) return;
    // Joined before looking again: either the job is still open, or run() has seen that this worker joined.
    joined_.fetch_add(1);
    const uint64_t job = open_.load();
    if (job != 0 && job != seen) {
      take_tasks(thread);
      seen = job;
    }
    joined_.fetch_sub(1);
  }
}

void Pool::Crew::run(int64_t n, const std::function<void(int64_t, int)>& task) {
  const auto all_left = [&] { return joined_.load() == 0; };
  const auto threads = int64_t(ranges_.size());
  task_ = &task;
  for (int64_t k = 0; k < threads; k++) {
    ranges_[size_t(k)].next.store(k * n / threads, std::memory_order_relaxed);
    ranges_[size_t(k)].end = (k + 1) * n / threads;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_.store(++last_job_);
  }
  wake_.notify_all();
  take_tasks(0);
  open_.store(0);
  while (!spin(all_left)) std::this_thread::yield();
}

Pool::Pool(int threads)
    : threads_(threads),
      generation_(this_generation()),
      crew_(threads > 1 ? std::make_unique<Crew>(threads) : nullptr) {}

// A crew of another process is left as it is: its threads are not here to be waited for, and a lock of theirs may have
// been taken when the process was forked.
Pool::~Pool() {
  if (is_inherited()) (void)crew_.release();
}

bool Pool::is_inherited() const { return generation_ != this_generation(); }

void Pool::run(int64_t n, const std::function<void(int64_t, int)>& task) {
  if (threads_ == 1 || n <= 1) {
    for (int64_t i = 0; i < n; i++) task(i, 0);
    return;
  }
  if (is_inherited()) {
    auto crew = std::make_unique<Crew>(threads_);
    (void)crew_.release();
    crew_ = std::move(crew);
    generation_ = this_generation();
  }
  crew_->run(n, task);
}

}  // namespace secateur
