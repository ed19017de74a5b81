#include "sections.h"

#include <algorithm>

#include "layout.h"

namespace secateur {

namespace {

// In multiply-adds of one vector, each about 0.4 ns on the machine these were measured on; only ratios matter.
constexpr double far_line = 4.0;     // to fetch, or to write back
constexpr double converted = 4.0;    // a number that passes a cut
constexpr double per_row = 6.0;      // for each weight, besides those of the pixels of a tile
constexpr int64_t most_pixels = 16;  // of a tile

// How many times longer threads take that share images: each has a strip of them all, or they read and write in the
// same places.
constexpr double strips = 1.1, shared = 1.25;

Section part(const Program& program, size_t first, size_t end, int input, int output, int64_t chunk) {
  Section section{{program.values, program.inputs, program.outputs, {}, {}, program.half, {}}, first, chunk};
  if (input >= 0) section.program.inputs = {input};
  if (output >= 0) section.program.outputs = {output};
  section.program.ops.assign(program.ops.begin() + ptrdiff_t(first), program.ops.begin() + ptrdiff_t(end));
  return section;
}

// For each operation, the only value that those after it need of what was there before; −1 if there are more.
std::vector<int> crossing(const Program& program, const std::vector<size_t>& last) {
  std::vector<int> alive = program.inputs, found;
  for (size_t i = 0; i < program.ops.size(); i++) {
    alive.push_back(program.ops[i].output);
    alive.erase(std::remove_if(alive.begin(), alive.end(), [&](int id) { return last[size_t(id)] <= i + 1; }),
                alive.end());
    const bool one = !alive.empty() && std::count(alive.begin(), alive.end(), alive[0]) == ptrdiff_t(alive.size());
    const Value* value = one ? &program.values[size_t(alive[0])] : nullptr;
    found.push_back(one && !value->is_integer && !value->shape.empty() && value->shape[0] < 0 ? alive[0] : -1);
  }
  return found;
}

int64_t numbers_of(const Program& program, int id) { return count(at_batch(program.values[size_t(id)].shape, 1)); }

// Of what an operation reads and writes for one image; what one thread computes part by part stays near.
int64_t bytes_of(const Program& program, const std::vector<size_t>& last, size_t place, bool one_thread) {
  const Op& op = program.ops[place];
  const bool fed = one_thread && place > 0 && feeds_next(program, last, place - 1);
  const bool feeds = one_thread && feeds_next(program, last, place);
  int64_t numbers = 0;
  for (const int id : op.inputs) numbers += fed ? 0 : numbers_of(program, id);
  const bool in_place = op.kind == OpKind::conv && op.inputs.size() == 2 && last[size_t(op.inputs[1])] == place + 1;
  if (!in_place && !feeds) numbers += numbers_of(program, op.output);
  return numbers * 4;
}

// Of an operation for one image, if `threads` threads share `images` images at a time.
double cost(const Program& program, const KernelTable& table, const Op& op, int64_t images, int threads, int64_t bytes,
            int64_t working_set) {
  double vectors = double(numbers_of(program, op.output)) / table.lanes;
  if (op.kind == OpKind::conv || op.kind == OpKind::linear) {
    const Shape shape = at_batch(program.values[size_t(op.output)].shape, images);
    int32_t groups = 1;
    int64_t pixels = (count(shape) / shape.back() + table.lanes - 1) / table.lanes;  // in a lane; of a Linear: rows
    if (shape.size() == 4) {
      groups = groups_for(table, int32_t(images), shape[2], shape[3], threads);
      const LaneLayout layout = image_layout(table, int32_t(images), 1, shape[2], shape[3], groups);
      pixels = layout.block_height * layout.block_width;
    }
    const double overhead = per_row / double(std::min(pixels, most_pixels));
    vectors = double(op.weight->numbers.size()) * double(pixels * groups) * (1.0 + overhead) / double(images);
    if (threads > 1) vectors *= groups > 1 ? strips : shared;
  }
  const double lines = double(bytes) / double(table.lanes * table.number_bytes);
  return vectors + (bytes * images / threads > working_set ? lines * far_line : 0.0);
}

}  // namespace

Section whole(const Program& program, int64_t chunk) { return part(program, 0, program.ops.size(), -1, -1, chunk); }

std::vector<Section> sections_of(const Program& program, const KernelTable& table, int64_t batch, int threads,
                                 int64_t working_set) {
  const size_t n = program.ops.size();
  const std::vector<size_t> last = last_readers(program);
  const std::vector<int> cuts = crossing(program, last);
  std::vector<int64_t> chunks{1};
  while (chunks.back() * 2 <= std::min<int64_t>(table.lanes, batch)) chunks.push_back(chunks.back() * 2);
  if (n == 0) return {whole(program, chunks.back())};
  // The least cost from each operation on, if it takes chunks[c] images at a time; and with which the next one goes on.
  std::vector<std::vector<double>> least(n + 1, std::vector<double>(chunks.size(), 0.0));
  std::vector<std::vector<size_t>> next(n, std::vector<size_t>(chunks.size(), 0));
  const auto best = [&](size_t i) {  // of equal ones the most images: fewer margins between blocks
    return size_t(least[i].rend() - std::min_element(least[i].rbegin(), least[i].rend())) - 1;
  };
  for (size_t i = n; i-- > 0;) {
    const size_t other = best(i + 1);
    const bool cut_here = i + 1 < n && cuts[i] >= 0 && !feeds_next(program, last, i);
    for (size_t c = 0; c < chunks.size(); c++) {
      next[i][c] = c;
      if (cut_here) {
        const double cut = converted * double(numbers_of(program, cuts[i]));
        if (least[i + 1][other] + cut < least[i + 1][c]) next[i][c] = other;
        least[i][c] = next[i][c] == c ? 0.0 : cut;
      }
      const int together = batch / chunks[c] >= threads ? 1 : threads;
      least[i][c] += least[i + 1][next[i][c]];
      const int64_t bytes = bytes_of(program, last, i, together == 1);
      least[i][c] += cost(program, table, program.ops[i], chunks[c], together, bytes, working_set);
    }
  }
  std::vector<Section> sections;
  size_t first = 0;
  int input = -1;
  for (size_t i = 0, c = best(0); i < n; c = next[i++][c]) {
    const bool ends = i + 1 == n;
    if (!ends && next[i][c] == c) continue;
    sections.push_back(part(program, first, i + 1, input, ends ? -1 : cuts[i], chunks[c]));
    first = i + 1;
    input = cuts[i];
  }
  return sections;
}

}  // namespace secateur
