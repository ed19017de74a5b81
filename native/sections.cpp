#include "sections.h"

#include <algorithm>

namespace secateur {

namespace {

constexpr int64_t worth_a_cut = 4;

Section part(const Program& program, size_t first, size_t end, int input, int output, int64_t chunk) {
  Section section{{program.values, program.inputs, program.outputs, {}, {}, program.half, {}}, first, chunk};
  if (input >= 0) section.program.inputs = {input};
  if (output >= 0) section.program.outputs = {output};
  section.program.ops.assign(program.ops.begin() + ptrdiff_t(first), program.ops.begin() + ptrdiff_t(end));
  return section;
}

// For each operation, the only value that those after it need of what was there before; −1 if there are more.
std::vector<int> crossing(const Program& program) {
  const size_t n = program.ops.size();
  std::vector<size_t> last(program.values.size(), 0);  // the operation that reads it last, counted from 1
  for (size_t i = 0; i < n; i++)
    for (const int id : program.ops[i].inputs) last[size_t(id)] = i + 1;
  for (const int id : program.outputs) last[size_t(id)] = n + 1;
  std::vector<int> alive = program.inputs, found;
  for (size_t i = 0; i < n; i++) {
    alive.push_back(program.ops[i].output);
    alive.erase(std::remove_if(alive.begin(), alive.end(), [&](int id) { return last[size_t(id)] <= i + 1; }),
                alive.end());
    const bool one = !alive.empty() && std::count(alive.begin(), alive.end(), alive[0]) == ptrdiff_t(alive.size());
    const Value* value = one ? &program.values[size_t(alive[0])] : nullptr;
    found.push_back(one && !value->is_integer && !value->shape.empty() && value->shape[0] < 0 ? alive[0] : -1);
  }
  return found;
}

}  // namespace

Section whole(const Program& program, int64_t chunk) { return part(program, 0, program.ops.size(), -1, -1, chunk); }

std::vector<Section> sections_of(const Program& program, int64_t lanes, int64_t batch,
                                 int64_t working_set) {
  const size_t n = program.ops.size();
  const auto numbers = [&](int id) { return count(at_batch(program.values[size_t(id)].shape, 1)); };
  std::vector<int64_t> chunks(n + 1, 1);  // images at a time for all operations from this one on
  while (chunks[n] * 2 <= std::min(lanes, batch)) chunks[n] *= 2;
  for (size_t i = n; i-- > 0;) {
    int64_t bytes = numbers(program.ops[i].output) * 4;
    for (const int id : program.ops[i].inputs) bytes += numbers(id) * 4;
    chunks[i] = chunks[i + 1];
    while (chunks[i] > 1 && bytes > working_set / chunks[i]) chunks[i] /= 2;
  }
  std::vector<Section> sections;
  const std::vector<int> cuts = crossing(program);
  size_t first = 0;
  int input = -1;
  for (size_t i = 1; i < n; i++) {
    const int value = cuts[i - 1];
    if (value < 0 || chunks[i] < chunks[first] * worth_a_cut) continue;
    sections.push_back(part(program, first, i, input, value, chunks[first]));
    first = i;
    input = value;
  }
  sections.push_back(part(program, first, n, input, -1, chunks[first]));
  return sections;
}

}  // namespace secateur
