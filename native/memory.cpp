#include "memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <new>

namespace secateur {

namespace {

constexpr int64_t unknown = std::numeric_limits<int64_t>::max();

// Reading a file of the system takes as long as writing so much.
constexpr int64_t worth_asking = 64 * 1024;

// The number in a file, or behind a word in it; `otherwise` where there is none.
int64_t number_in(const std::string& path, const std::string& word, int64_t otherwise) {
  std::ifstream file(path);
  std::string found;
  while (!word.empty() && found != word && file >> found) {
  }
  int64_t number = 0;
  return file >> number ? number : otherwise;
}

// What a control group may still use: its limit, less what it uses, but for files kept in memory that can go.
int64_t left_in(const std::string& folder, const char* limit, const char* used, const char* can_go) {
  const int64_t most = number_in(folder + limit, "", unknown);
  if (most == unknown) return unknown;
  const int64_t now = number_in(folder + used, "", 0) - number_in(folder + "/memory.stat", can_go, 0);
  return std::max<int64_t>(most - std::max<int64_t>(now, 0), 0);
}

// Over a group and those it is part of. Inside a container the path may be that outside: the last, which is the
// root, is then the container's own.
int64_t left_along(const std::string& mount, std::string path, const char* limit, const char* used,
                   const char* can_go) {
  int64_t least = unknown;
  while (!path.empty() && path.back() == '/') path.pop_back();
  for (;;) {
    least = std::min(least, left_in(mount + path, limit, used, can_go));
    if (path.empty()) return least;
    path.erase(path.rfind('/'));
  }
}

}  // namespace

int64_t available_bytes(const std::string& root) {
  int64_t least = number_in(root + "/proc/meminfo", "MemAvailable:", unknown);
  if (least != unknown) least *= 1024;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty())
      least =
          std::min(least, left_along(root + "/sys/fs/cgroup", path, "/memory.max", "/memory.current", "inactive_file"));
    else if (controllers == "memory")
      least = std::min(least, left_along(root + "/sys/fs/cgroup/memory", path, "/memory.limit_in_bytes",
                                         "/memory.usage_in_bytes", "total_inactive_file"));
  }
  return least;
}

void check_available(int64_t bytes) {
  if (bytes >= worth_asking && bytes > available_bytes()) throw std::bad_alloc();
}

}  // namespace secateur
