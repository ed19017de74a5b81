// What counts as available memory, from files as Linux has them: of a machine, of control groups of either version.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>

#include "memory.h"

namespace {

using Files = std::map<std::string, std::string>;

void expect(int64_t wanted, const Files& files, const char* what) {
  std::string root = (std::filesystem::temp_directory_path() / "secateur-memory-XXXXXX").string();
  if (!mkdtemp(root.data())) std::exit(2);
  for (const auto& [name, text] : files) {
    const std::filesystem::path path = root + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  const int64_t found = secateur::available_bytes(root);
  std::filesystem::remove_all(root);
  if (found == wanted) return;
  std::printf("%s: got %lld, wanted %lld\n", what, (long long)found, (long long)wanted);
  std::exit(1);
}

const Files machine = {{"/proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n"}};

Files on_machine(const Files& more) {
  Files all = machine;
  all.insert(more.begin(), more.end());
  return all;
}

}  // namespace

int main() {
  expect(std::numeric_limits<int64_t>::max(), {}, "where nothing is known");
  expect(4000 * 1024, machine, "no groups");
  const Files second = {{"/proc/self/cgroup", "0::/outer/inner\n"},
                        {"/sys/fs/cgroup/outer/inner/memory.max", "max\n"},
                        {"/sys/fs/cgroup/outer/memory.max", "1000000\n"},
                        {"/sys/fs/cgroup/outer/memory.current", "600000\n"},
                        {"/sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 100000\nslab 7\n"}};
  expect(500000, on_machine(second), "the limit of an outer group, less what it uses, but for its files");
  expect(500000, second, "groups without meminfo");
  const Files inside = {{"/proc/self/cgroup", "0::/not/seen/here\n"},
                        {"/sys/fs/cgroup/memory.max", "300000\n"},
                        {"/sys/fs/cgroup/memory.current", "400000\n"}};
  expect(0, on_machine(inside), "a container that sees its own group as the root, and is full");
  const Files first = {{"/proc/self/cgroup", "5:cpu:/job\n4:memory:/job\n0::/\n"},
                       {"/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000000\n"},
                       {"/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "500000\n"},
                       {"/sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 200000\n"},
                       {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"}};
  expect(1700000, on_machine(first), "groups of the first version");
  expect(4000 * 1024, on_machine({{"/proc/self/cgroup", "nonsense\n0:\n::\n"}}),
         "what cannot be read counts for nothing");
  std::printf("available memory is what the files say\n");
}
