#include "borders.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "error.h"

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
  if (values.bytes() > std::numeric_limits<int32_t>::max()) throw PlanError("its input is too large");
  std::vector<Moves> margins;
  std::set<Source> needed;
  for (int32_t group = 0; group < values.groups; group++) {
    margins.push_back(moves_between(values, values, true, every_pixel, group, Region::margins));
    for (const Move& move : margins.back().moves) {
      if (!leaves(move, group, values.group_bytes())) continue;
      for (const int32_t lane : pattern_of(margins.back(), move, values.lanes))
        if (lane >= 0) needed.insert({move.from, lane});
    }
  }
  pack(needed);
  for (int32_t group = 0; group < values.groups; group++) divide(margins[size_t(group)], group);
}

// Gives each number that is needed a place in the borders of its group: those of one vector in one vector.
void Borders::pack(const std::set<Source>& needed) {
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
      places_[*next] = {int32_t(vector), int32_t(used[group])};
      pattern[used[group]++] = next->second;
    }
    given[group].add(vector, offset, pattern, first);
  }
  for (MoveList& list : given) given_.push_back(std::move(list.result));
  plane_ = int64_t(*std::max_element(vectors.begin(), vectors.end())) * values_.vector_bytes();
  group_bytes_ = (plane_ * values_.channels + page - 1) / page * page;
}

// Those moves that stay within a group come first.
void Borders::divide(const Moves& margins, int64_t group) {
  MoveList own, taken;
  std::set<int32_t> begun;
  for (const bool out : {false, true}) {
    for (const Move& move : margins.moves) {
      if (leaves(move, group, values_.group_bytes()) != out) continue;
      std::vector<int32_t> pattern = pattern_of(margins, move, values_.lanes);
      int64_t from = move.from;
      for (int32_t& lane : pattern) {
        if (!out || lane < 0) continue;
        const Source& place = places_.at({move.from, lane});
        from = move.from / values_.group_bytes() * group_bytes_ + place.first;
        lane = place.second;
      }
      (out ? taken : own).add(move.to, from, pattern, begun.insert(move.to).second);
    }
  }
  own_.push_back(std::move(own.result));
  taken_.push_back(std::move(taken.result));
}

void Borders::move(const Moves& moves, MoveCall call) const {
  call.moves = moves.moves.data();
  call.n_moves = int64_t(moves.moves.size());
  call.patterns = moves.patterns.data();
  call.fill = values_.fill;
  move_(call);
}

void Borders::give(const char* values, int64_t group, char* borders) const {
  MoveCall call{};
  call.to = borders + group * group_bytes_;
  call.to_plane = plane_;
  call.from = values;
  call.from_plane = values_.plane();
  call.n_channels = values_.channels;
  move(given_[size_t(group)], call);
}

void Borders::run(const char* borders, const LaneTask& task, char* values) const {
  MoveCall call{};
  call.to = values;
  call.to_plane = call.from_plane = values_.plane();
  call.from = values;
  call.n_channels = task.channels.end - task.channels.begin;
  move(own_[size_t(task.group)], call);
  call.from = borders + task.channels.begin * plane_;
  call.from_plane = plane_;
  move(taken_[size_t(task.group)], call);
}

}  // namespace secateur
