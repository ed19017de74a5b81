// A program made ready for one batch size: where every value lies, and the stages that compute it. Building it may
// throw; running it does not.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "conv.h"
#include "kernels.h"
#include "layout.h"
#include "pool.h"
#include "program.h"

namespace secateur {

// Memory of one run at a time: all values that are not inputs or outputs of the program, and scratch for each thread.
class Context {
 public:
  Context(int64_t bytes, int64_t scratch_bytes, int threads, size_t n_buffers);
  char* buffer(int id) const { return buffers_[size_t(id)]; }
  char* scratch(int thread) const { return memory_.get() + scratch_at_ + thread * scratch_bytes_; }
  char* memory() const { return memory_.get(); }
  void bind(int id, char* data) { buffers_[size_t(id)] = data; }
  void fail(const std::string& message);  // remembers the first; Session::run throws it
  std::string failure;

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> memory_;
  int64_t scratch_at_, scratch_bytes_;
  std::vector<char*> buffers_;
};

using Work = std::function<void(Context&, int64_t task, int thread)>;

class Borders;
class Filler;

// A sparse weight as `GatherCall` reads it: outputs side by side in the lanes of a vector, an input after the other.
struct GatheredRows {
  GatheredRows(const SparseRows& sparse, int64_t outputs, int64_t lanes);

  std::vector<float> weights;
  std::vector<int32_t> columns, n_steps, rows;
  std::vector<int64_t> first;  // per slice
};

class Session {
 public:
  // `batch` images at a time out of `total` in the call, for which kernels are chosen; `threads` share each stage.
  Session(const Program& program, const KernelTable& table, int64_t batch, int64_t total, int threads);

  std::unique_ptr<Context> new_context() const;

  // Inputs and outputs in the order of the program. With a pool, stages are shared among its threads. `seconds`, if
  // not null, gets the time of each operation. Throws what a stage reported.
  void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, Context& context, Pool* pool,
           double* seconds) const;

  int64_t weight_bytes() const { return weight_bytes_; }  // of the weights as its kernels read them
  int64_t context_bytes() const { return arena_bytes_ + scratch_bytes_ * threads_; }

 private:
  friend class LaneBuilder;
  friend class PlainBuilder;

  struct Buffer {
    int64_t bytes;
    int first = -1, last = -1;  // stages
    int64_t offset = 0;
    bool external = false;
  };
  struct Stage {
    int op;
    int64_t n_tasks;
    Work work;
  };
  struct Form {  // how a value is to be had; −1: not yet
    int plain = -1;
    int lane = -1;
    LaneLayout layout;                       // of `lane`
    std::shared_ptr<const Borders> borders;  // with which its margins are yet to be filled, by the first who reads them
  };

  struct Feeder {  // a convolution whose output the next one reads part by part, each right after it is computed
    int op;
    int64_t parts;
    std::shared_ptr<const Convolution> plan;
    int buffer;  // of its input
    LaneLayout layout;
    std::shared_ptr<const Filler> filler;  // of the buffer; null if it is filled
  };

  int new_buffer(int64_t bytes);
  int new_plain(int value);  // for the value to be written to
  void add_stage(int64_t n_tasks, const std::vector<int>& buffers, Work work);
  void use(const std::vector<int>& buffers);  // in the last stage
  int plain(int value);                       // the buffer that holds the value, converted if need be
  void place_buffers();
  int64_t bytes_of(int value) const;
  bool is_output(int value) const;
  bool is_read_later(int value) const;  // than by the operation that is being built

  const Program& program_;
  const KernelTable& table_;
  int64_t batch_, total_;
  int threads_;
  int32_t images_;  // lanes for images: a power of two
  std::vector<size_t> last_readers_;
  int op_ = 0;                    // being built
  std::optional<Feeder> feeder_;  // what the previous one left to it
  std::vector<Shape> shapes_;
  std::vector<Form> forms_;
  std::vector<LaneLayout> layouts_;  // that a value has, or would have, as images
  std::vector<Buffer> buffers_;
  std::vector<Stage> stages_;
  std::map<const Weight*, std::shared_ptr<const GatheredRows>> gathered_;
  std::vector<int> input_buffers_, output_buffers_;
  int64_t arena_bytes_ = 0, scratch_bytes_ = 0, weight_bytes_ = 0;
};

}  // namespace secateur
