#include "borders.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace secateur {

namespace {

// Strips do not share pages, so that no core fetches ahead what another one is writing.
constexpr int64_t page = 4096;

// What passes through many vectors at once is read where it lies.
bool leaves(const Move& move, int64_t group, int64_t group_bytes) {
  return move.from >= 0 && move.from / group_bytes != group;
}

std::vector<int32_t> pattern_of(const Moves& moves, const Move& move, int32_t lanes) {
  const auto begin = moves.patterns.begin() + ptrdiff_t(move.pattern) * lanes;
  return {begin, begin + lanes};
}

}  // namespace

Borders::Borders(const KernelTable& table, const LaneLayout& values, int buffer)
    : Filler(buffer), values_(values), move_(table.move) {
  std::vector<Moves> margins;
  std::set<Place> needed;
  for (int32_t group = 0; group < values.groups; group++) {
    margins.push_back(moves_between(values, values, true, every_pixel, group, Region::margins));
    for (const Move& move : margins.back().moves) {
      if (!leaves(move, group, values.group_bytes())) continue;
      for (const int32_t lane : pattern_of(margins.back(), move, values.lanes))
        if (lane >= 0) needed.insert({move.from, lane});
    }
  }
  const Places places = pack(needed);
  for (int32_t group = 0; group < values.groups; group++) divide(margins[size_t(group)], group, places);
}

// Gives each number that is needed a place in the borders of its group: those of one vector in one vector.
Borders::Places Borders::pack(const std::set<Place>& needed) {
  Places places;
  const auto lanes = size_t(values_.lanes);
  std::vector<MoveList> given(size_t(values_.groups));
  std::vector<size_t> vectors(size_t(values_.groups), 0), used(size_t(values_.groups), lanes);
  for (auto next = needed.begin(); next != needed.end();) {
    const int32_t offset = next->first;
    const auto end = needed.upper_bound({offset, values_.lanes});
    const auto group = size_t(offset / values_.group_bytes());
    if (used[group] + size_t(std::distance(next, end)) > lanes) vectors[group]++, used[group] = 0;
    const int64_t vector = int64_t(vectors[group] - 1) * values_.vector_bytes();
    const bool first = used[group] == 0;
    std::vector<int32_t> pattern(lanes, -1);
    for (; next != end; ++next) {
      places[*next] = {int32_t(vector), int32_t(used[group])};
      pattern[used[group]++] = next->second;
    }
    given[group].add(vector, offset, pattern, first);
  }
  for (MoveList& list : given) given_.push_back(std::move(list.result));
  plane_ = int64_t(*std::max_element(vectors.begin(), vectors.end())) * values_.vector_bytes();
  group_bytes_ = (plane_ * values_.channels + page - 1) / page * page;
  return places;
}

// Those moves that stay within a group come first.
void Borders::divide(const Moves& margins, int64_t group, const Places& places) {
  MoveList own, taken;
  std::set<int32_t> begun;
  for (const bool out : {false, true}) {
    for (const Move& move : margins.moves) {
      if (leaves(move, group, values_.group_bytes()) != out) continue;
      std::vector<int32_t> pattern = pattern_of(margins, move, values_.lanes);
      int64_t from = move.from;
      for (int32_t& lane : pattern) {
        if (!out || lane < 0) continue;
        const Place& place = places.at({move.from, lane});
        from = move.from / values_.group_bytes() * group_bytes_ + place.first;
        lane = place.second;
      }
      (out ? taken : own).add(move.to, from, pattern, begun.insert(move.to).second);
    }
  }
  own_.push_back(std::move(own.result));
  taken_.push_back(std::move(taken.result));
}

void Borders::give(const char* values, int64_t group, char* borders) const {
  MoveCall call = given_[size_t(group)].call(values_.fill);
  call.to = borders + group * group_bytes_;
  call.to_plane = plane_;
  call.from = values;
  call.from_plane = values_.plane();
  call.n_channels = values_.channels;
  move_(call);
}

void Borders::run(const char* borders, const LaneTask& task, char* values) const {
  const auto fill_from = [&](const Moves& moves, const char* from, int64_t plane) {
    MoveCall call = moves.call(values_.fill);
    call.to = values;
    call.to_plane = values_.plane();
    call.from = from;
    call.from_plane = plane;
    call.n_channels = task.channels.end - task.channels.begin;
    move_(call);
  };
  fill_from(own_[size_t(task.group)], values, values_.plane());
  fill_from(taken_[size_t(task.group)], borders + task.channels.begin * plane_, plane_);
}

}  // namespace secateur
