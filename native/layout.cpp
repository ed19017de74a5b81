#include "layout.h"

#include <algorithm>
#include <limits>
#include <map>

#include "error.h"

namespace secateur {

namespace {

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Blocks of fewer pixels make tiles too small for a kernel to run well.
constexpr int64_t least_pixels = 8;

// How much more may be computed, beyond the image, with more groups.
constexpr double most_beyond = 1.25;

// An odd number of cache lines, so that channels do not fall on the same few cache sets.
int64_t odd_lines(int64_t bytes) {
  const int64_t line = 64, lines = divide_up(bytes, line);
  return (lines % 2 ? lines : lines + 1) * line;
}

struct Pixel {
  int64_t y, x;
};

Pixel origin(const LaneLayout& layout, int32_t group, int32_t lane) {
  const int32_t block = lane % (layout.grid_y * layout.grid_x);
  const int32_t down = group * layout.grid_y + block / layout.grid_x;
  return {down * layout.pitch_y, block % layout.grid_x * layout.pitch_x};
}

// Where the last of n windows ends, counted from the first pixel.
int64_t end_of_rows(const Window& w, int64_t n) {
  return (n - 1) * w.stride_y + (w.height - 1) * w.dilation_y + 1 - w.top;
}
int64_t end_of_columns(const Window& w, int64_t n) {
  return (n - 1) * w.stride_x + (w.width - 1) * w.dilation_x + 1 - w.left;
}

// Lane and byte offset (from the first group's first vector of a channel) of a pixel of an image.
struct Place {
  int64_t offset;
  int32_t lane;
};

Place place_of(const LaneLayout& layout, int32_t image, Pixel pixel) {
  const int64_t by = layout.pitch_y ? pixel.y / layout.pitch_y : 0, bx = layout.pitch_x ? pixel.x / layout.pitch_x : 0;
  const int64_t y = pixel.y - by * layout.pitch_y + layout.top, x = pixel.x - bx * layout.pitch_x + layout.left;
  const int64_t group = by / layout.grid_y, down = by % layout.grid_y;
  const int64_t lane = (int64_t(image) * layout.grid_y + down) * layout.grid_x + bx;
  return {group * layout.group_bytes() + y * layout.row() + x * layout.vector_bytes(), int32_t(lane)};
}

}  // namespace

int64_t LaneLayout::row() const { return groups > 1 ? odd_lines(line() * channels) : line(); }

int64_t LaneLayout::plane() const { return groups > 1 ? line() : odd_lines((top + block_height + bottom) * line()); }

bool LaneLayout::has_margins_for(const LaneLayout& need, float with) const {
  return top >= need.top && left >= need.left && bottom >= need.bottom && right >= need.right &&
         (!need.has_margin() || (has_margin() && fill == with));
}

bool LaneLayout::same_blocks(const LaneLayout& o) const {
  return groups == o.groups && images == o.images && grid_y == o.grid_y && grid_x == o.grid_x && pitch_y == o.pitch_y &&
         pitch_x == o.pitch_x && block_height == o.block_height && block_width == o.block_width && height == o.height &&
         width == o.width && tokens == o.tokens;
}

bool LaneLayout::same_places(const LaneLayout& o) const {
  return same_blocks(o) && channels == o.channels && top == o.top && left == o.left && bottom == o.bottom &&
         right == o.right;
}

LaneLayout image_layout(const KernelTable& table, int32_t images, int64_t channels, int64_t height, int64_t width,
                        int32_t groups) {
  LaneLayout layout;
  layout.groups = groups;
  layout.lanes = table.lanes;
  layout.number_bytes = table.number_bytes;
  layout.images = images;
  layout.channels = channels;
  layout.height = height;
  layout.width = width;
  const int32_t blocks = table.lanes / images;
  if (height == 1 && width > 1) {
    layout.grid_x = blocks;
  } else if (width == 1 && height > 1) {
    layout.grid_y = blocks;
  } else {
    // as little beyond the image as may be; of equal ones the squarest
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int32_t across = 1; across <= blocks; across *= 2) {
      const int32_t down = groups * (blocks / across);
      const int64_t area = divide_up(height, down) * divide_up(width, across);
      const int64_t cost = area * 1000 + (down > across ? down / across : across / down);
      if (cost < least) least = cost, layout.grid_x = across, layout.grid_y = blocks / across;
    }
  }
  layout.block_height = divide_up(height, groups * layout.grid_y);
  layout.block_width = divide_up(width, layout.grid_x);
  if (!layout.spread()) {
    if (groups * layout.grid_y > 1) layout.pitch_y = layout.block_height;
    if (layout.grid_x > 1) layout.pitch_x = layout.block_width;
  }
  return layout;
}

int32_t groups_for(const KernelTable& table, int32_t images, int64_t height, int64_t width, int threads) {
  if (images == table.lanes || height == 1 || width == 1) return 1;
  const auto area = [&](int32_t groups) {
    const LaneLayout layout = image_layout(table, images, 1, height, width, groups);
    return layout.block_height * layout.block_width;
  };
  const int64_t alone = area(threads), shared = area(1);
  return alone >= least_pixels && double(alone * threads) <= most_beyond * double(shared) ? threads : 1;
}

LaneLayout token_layout(const KernelTable& table, int64_t n, int64_t features) {
  LaneLayout layout;
  layout.lanes = table.lanes;
  layout.number_bytes = table.number_bytes;
  layout.channels = features;
  layout.height = 1;
  layout.width = n;
  layout.grid_x = table.lanes;
  layout.block_height = 1;
  layout.block_width = divide_up(n, table.lanes);
  layout.pitch_x = layout.block_width;
  layout.tokens = true;
  return layout;
}

WindowInput window_input(const LaneLayout& from, const LaneLayout& to, const Window& w) {
  WindowInput input{true, from};
  LaneLayout& in = input.layout;
  const int64_t pitch_y = to.pitch_y * w.stride_y, pitch_x = to.pitch_x * w.stride_x;
  if (from.groups != to.groups || from.grid_y != to.grid_y || from.grid_x != to.grid_x || from.pitch_y != pitch_y ||
      from.pitch_x != pitch_x) {
    input.direct = false;
    in.groups = to.groups;
    in.grid_y = to.grid_y;
    in.grid_x = to.grid_x;
    in.pitch_y = pitch_y;
    in.pitch_x = pitch_x;
    in.block_height = pitch_y ? pitch_y : from.height;
    in.block_width = pitch_x ? pitch_x : from.width;
  }
  in.top = w.top;
  in.left = w.left;
  in.bottom = std::max<int64_t>(0, end_of_rows(w, to.block_height) - in.block_height);
  in.right = std::max<int64_t>(0, end_of_columns(w, to.block_width) - in.block_width);
  in.past = end_of_rows(w, to.height) > from.height || end_of_columns(w, to.width) > from.width;
  return input;
}

namespace {

// Whether some window of stride `stride` reads row or column `at`, counted from the first that any reads.
bool is_read(int64_t at, int64_t window, int64_t stride, int64_t dilation) {
  if (dilation == 1) return at % stride < window;
  for (int64_t k = 0; k < std::min(window, stride); k++)  // then remainders come again
    if (at >= k * dilation && (at - k * dilation) % stride == 0) return true;
  return false;
}

}  // namespace

Moves moves_between(const LaneLayout& from, const LaneLayout& to, bool same, const Window& window, int32_t group,
                    Region region) {
  constexpr size_t most_permutes = 6;
  if (std::max(from.bytes(), to.bytes()) > std::numeric_limits<int32_t>::max())
    throw PlanError("its input is too large");
  MoveList list;
  const int32_t per_image = to.grid_y * to.grid_x;
  const int64_t base = group * to.group_bytes();
  for (int64_t y = -to.top; y < to.block_height + to.bottom; y++) {
    if (!same && !is_read(y + to.top, window.height, window.stride_y, window.dilation_y)) continue;
    for (int64_t x = -to.left; x < to.block_width + to.right; x++) {
      if (!same && !is_read(x + to.left, window.width, window.stride_x, window.dilation_x)) continue;
      const bool inside = y >= 0 && y < to.block_height && x >= 0 && x < to.block_width;
      if (region == (inside ? Region::margins : Region::blocks)) continue;
      const int64_t target = base + (y + to.top) * to.row() + (x + to.left) * to.vector_bytes();
      std::map<int64_t, std::vector<int32_t>> sources;  // byte offset in `from` → pattern
      std::vector<int32_t> numbers(size_t(to.lanes), -1);
      bool identity = true;
      for (int32_t lane = 0; lane < to.lanes; lane++) {
        const Pixel start = origin(to, group, lane), pixel{start.y + y, start.x + x};
        if (pixel.y < 0 || pixel.x < 0 || pixel.y >= from.height || pixel.x >= from.width) {
          identity = false;
          continue;
        }
        Place place = place_of(from, lane / per_image, pixel);
        if (from.spread() && same) place.lane = lane;  // in every block: take it from the same lane
        auto& pattern = sources[place.offset];
        pattern.resize(size_t(to.lanes), -1);
        pattern[size_t(lane)] = place.lane;
        numbers[size_t(lane)] = int32_t(place.offset / from.number_bytes) + place.lane;
        identity = identity && place.offset == target && place.lane == lane;
      }
      if (same && identity) continue;
      if (sources.size() > most_permutes) {
        list.add(target, from_many, numbers, true);
        continue;
      }
      if (sources.empty()) list.add(target, from_none, numbers, true);
      // The vector itself first: later moves overwrite it.
      bool first = true;
      if (const auto self = sources.find(target); same && self != sources.end()) {
        list.add(target, target, self->second, true);
        first = false;
        sources.erase(self);
      }
      for (const auto& [offset, pattern] : sources) {
        list.add(target, offset, pattern, first);
        first = false;
      }
    }
  }
  return list.result;
}

}  // namespace secateur
