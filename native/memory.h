// How much memory there is. Asking for more would, on Linux, succeed, and kill the process once it is written to.
#pragma once

#include <cstdint>
#include <string>

namespace secateur {

// Bytes that can be had before the machine, or a control group that this process is in, has no more; the largest
// int64 where nothing says so. `root`: where /proc and /sys lie, for tests.
int64_t available_bytes(const std::string& root = "");

// Throws std::bad_alloc if `bytes` are more than that. Small sizes pass unseen.
void check_available(int64_t bytes);

}  // namespace secateur
