// A pool in a child of fork(): it has none of the parent's threads, one of which may have been in a call.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "pool.h"

using secateur::Pool;

namespace {

constexpr int64_t n_tasks = 1000;

// Whether every task runs once.
bool runs(Pool& pool) {
  std::vector<std::atomic<int>> times(n_tasks);
  pool.run(n_tasks, [&](int64_t task, int) { times[size_t(task)]++; });
  for (const auto& n : times)
    if (n != 1) return false;
  return true;
}

// The exit status of a child that runs the pool twice, or only ends it; it is ended itself if it does neither in time.
int status_of_child(std::unique_ptr<Pool>& pool, bool run) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const bool good = !run || (runs(*pool) && runs(*pool));
    pool.reset();
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

int main() {
  auto pool = std::make_unique<Pool>(3);
  bool good = runs(*pool);
  for (const bool run : {false, true}) good = good && status_of_child(pool, run) == 0;
  std::atomic<bool> done{false};
  std::thread caller([&] {
    while (!done) runs(*pool);
  });
  for (int i = 0; i < 20; i++) good = good && status_of_child(pool, i % 2 == 1) == 0;
  done = true;
  caller.join();
  good = good && runs(*pool);
  std::puts(good ? "pools outlive a fork" : "a pool did not outlive a fork");
  return good ? 0 : 1;
}
