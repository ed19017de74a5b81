// How a value lies in vectors of lanes (see kernels.h): which lanes hold which images and blocks, how large a block
// is, and the margin around it that convolutions and pools reach into.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "kernels.h"

namespace secateur {

struct LaneLayout {
  int64_t channels = 0, height = 0, width = 0;  // of the value: what is outside is margin
  int32_t lanes = 0, number_bytes = 4;
  int32_t groups = 1;                          // of lanes, one after the other: strips of all images, from the top
  int32_t images = 1, grid_y = 1, grid_x = 1;  // in a group; their product is `lanes`
  int64_t pitch_y = 0, pitch_x = 0;            // pixels from a block to the next; 0 if all begin at the same pixel
  int64_t block_height = 0, block_width = 0;   // without margins
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  bool past = false;    // windows reach past the end of the image within the blocks: that is margin, too
  float fill = 0;       // of the margin, and of what is outside the image
  bool tokens = false;  // channels are the last dimension, not the second

  int64_t vector_bytes() const { return int64_t(lanes) * number_bytes; }
  int64_t line() const { return (left + block_width + right) * vector_bytes(); }
  int64_t row() const;
  int64_t plane() const;
  int64_t group_bytes() const { return groups > 1 ? row() * (top + block_height + bottom) : plane() * channels; }
  int64_t bytes() const { return group_bytes() * groups; }
  int64_t first_row(int64_t group) const { return group * grid_y * block_height; }
  bool has_margin() const { return top || left || bottom || right || past; }
  bool has_margins_for(const LaneLayout& need, float with) const;  // at least those, of that number
  bool spread() const { return height == 1 && width == 1; }
  bool same_blocks(const LaneLayout& other) const;
  bool same_places(const LaneLayout& other) const;  // of every number in a buffer

  // Where pixel (0, 0) of channel 0 of a group lies in a buffer.
  LaneView view(char* buffer, int64_t group = 0) const {
    return {buffer + group * group_bytes() + top * row() + left * vector_bytes(), plane(), row()};
  }
};

// `images` images (a power of two, at most as many as lanes) of `channels` × `height` × `width`, without margin.
LaneLayout image_layout(const KernelTable& table, int32_t images, int64_t channels, int64_t height, int64_t width,
                        int32_t groups);

// As many groups as threads, so that each thread has pixels of its own, if the plane is large enough for it; else one.
int32_t groups_for(const KernelTable& table, int32_t images, int64_t height, int64_t width, int threads);

// `n` rows of `features` numbers: the rows run through the lanes.
LaneLayout token_layout(const KernelTable& table, int64_t n, int64_t features);

// Where a window operation finds its input: `from` as it is, with margins; or a copy, if the blocks of `from` do not
// begin where windows of the blocks of `to` do.
struct WindowInput {
  bool direct;
  LaneLayout layout;
};
struct Window {
  int64_t height, width, stride_y, stride_x, dilation_y, dilation_x, top, left;
};
WindowInput window_input(const LaneLayout& from, const LaneLayout& to, const Window& window);

// The vectors of `to` to be filled from `from`, of which only those that a window reads are needed; if they are the
// same layout, only the margins and what lies outside the image.
struct Moves {
  std::vector<Move> moves;
  std::vector<int32_t> patterns;

  // These moves; from where to where, and of how many channels, is left to say.
  MoveCall call(float fill) const {
    MoveCall call{};
    call.moves = moves.data();
    call.n_moves = int64_t(moves.size());
    call.patterns = patterns.data();
    call.fill = fill;
    return call;
  }
};

// Collects moves, and each pattern once.
class MoveList {
 public:
  void add(int64_t to, int64_t from, const std::vector<int32_t>& pattern, bool first) {
    const auto [place, added] = known_.try_emplace(pattern, int32_t(known_.size()));
    if (added) result.patterns.insert(result.patterns.end(), pattern.begin(), pattern.end());
    result.moves.push_back({int32_t(to), int32_t(from), place->second, first});
  }

  Moves result;

 private:
  std::map<std::vector<int32_t>, int32_t> known_;
};

enum class Region { all, blocks, margins };
// For one group of `to`; distances are from where channel 0 of the first group begins. Throws if they are too large.
Moves moves_between(const LaneLayout& from, const LaneLayout& to, bool same, const Window& window, int32_t group,
                    Region region);

// A window that reads every pixel.
constexpr Window every_pixel{1, 1, 1, 1, 1, 1, 0, 0};

}  // namespace secateur
