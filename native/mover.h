// Moves of vectors between layouts, ready to run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layout.h"
#include "share.h"

namespace secateur {

// What fills a buffer, or its margins, from another, before it is read.
class Filler {
 public:
  explicit Filler(int from_buffer) : from_buffer(from_buffer) {}
  virtual ~Filler() = default;

  // `source`: the buffer; `target`: where the first of the channels of the task begins in the first group.
  virtual void run(const char* source, const LaneTask& task, char* target) const = 0;

  const int from_buffer;
};

// Moves from a buffer to another, or within one: what each group of the target needs.
class Mover : public Filler {
 public:
  Mover(const KernelTable& table, const LaneLayout& from, int from_buffer, const LaneLayout& to, int to_buffer,
        const Window& window, Region region)
      : Filler(from_buffer), to_buffer(to_buffer), to(to), from_plane_(from.plane()), move_(table.move) {
    for (int32_t group = 0; group < to.groups; group++)
      moves_.push_back(moves_between(from, to, from_buffer == to_buffer, window, group, region));
  }

  bool empty() const {
    return std::all_of(moves_.begin(), moves_.end(), [](const Moves& group) { return group.moves.empty(); });
  }
  int64_t bytes() const { return int64_t(moves_.front().moves.size()) * to.channels * to.vector_bytes(); }

  void run(const char* source, const LaneTask& task, char* target) const override {
    MoveCall call = moves_[size_t(task.group)].call(to.fill);
    call.to = target;
    call.to_plane = to.plane();
    call.from = source + task.channels.begin * from_plane_;
    call.from_plane = from_plane_;
    call.n_channels = task.channels.end - task.channels.begin;
    move_(call);
  }

  const int to_buffer;
  const LaneLayout to;

 private:
  int64_t from_plane_;
  void (*move_)(const MoveCall&);
  std::vector<Moves> moves_;  // by group
};

}  // namespace secateur
