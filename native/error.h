#pragma once

#include <stdexcept>
#include <string>

namespace secateur {

// The plan cannot be run: what is wrong with it, and where. ValueError in Python.
struct PlanError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

}  // namespace secateur
