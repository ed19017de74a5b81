// What strips of images hand to each other. Margins at the end of a strip are pixels of the next one, a few lanes of
// each vector of a row. Were they read where they lie, most of what passes between the cores would be other lanes, and
// each core would have to claim its own rows back before it can write them again. So each strip gives what others need
// in vectors of their own, as few as can be, as soon as it is computed.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "mover.h"

namespace secateur {

class Borders : public Filler {
 public:
  // For margins in place of `values`, which has more than one group; `buffer` is that of the borders.
  Borders(const KernelTable& table, const LaneLayout& values, int buffer);

  int64_t bytes() const { return group_bytes_ * values_.groups; }

  // From the values of a group to its borders.
  void give(const char* values, int64_t group, char* borders) const;

  // Fills the margins of a group of the values.
  void run(const char* borders, const LaneTask& task, char* values) const override;

 private:
  using Place = std::pair<int32_t, int32_t>;  // bytes from the first vector of channel 0, and a lane
  using Places = std::map<Place, Place>;      // in the borders of its group, by that in the values

  Places pack(const std::set<Place>& needed);
  void divide(const Moves& margins, int64_t group, const Places& places);

  LaneLayout values_;
  void (*move_)(const MoveCall&);
  int64_t plane_ = 0, group_bytes_ = 0;     // of the borders
  std::vector<Moves> given_, own_, taken_;  // by group: what others need; margins from itself, and from others
};

}  // namespace secateur
