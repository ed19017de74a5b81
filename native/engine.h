// A program with its weights, ready to run at any batch size. Calls of one engine wait for each other; several
// engines run side by side.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "pool.h"
#include "program.h"
#include "sections.h"
#include "session.h"

namespace secateur {

class Engine {
 public:
  Engine(std::string_view program, std::map<std::string, Weight> weights, int threads);

  size_t n_inputs() const { return program_.inputs.size(); }
  size_t n_outputs() const { return program_.outputs.size(); }
  size_t n_ops() const { return program_.ops.size(); }
  const Value& input(size_t i) const { return program_.values[size_t(program_.inputs[i])]; }
  const Value& output(size_t i) const { return program_.values[size_t(program_.outputs[i])]; }

  // The batch size of inputs of these shapes; throws if they are not what the program takes.
  int64_t batch_of(const std::vector<Shape>& inputs) const;
  Shape output_shape(size_t i, int64_t batch) const { return at_batch(output(i).shape, batch); }

  // Outputs have room for `output_shape`. `seconds`, if not null, has a place for each operation, and gets its time.
  void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, int64_t batch, double* seconds);

 private:
  struct Ready {
    std::unique_ptr<Session> session;
    std::vector<std::unique_ptr<Context>> contexts;  // one for each thread that runs it alone
    int64_t call = 0;                                // that last used it

    int64_t bytes() const { return session->weight_bytes() + int64_t(contexts.size()) * session->context_bytes(); }
  };
  using Key = std::tuple<size_t, int64_t, int64_t, int>;  // first operation, images at a time, batch, threads
  using Pointers = std::vector<void*>;

  int threads_for(int64_t batch) const { return batch <= program_.one_thread ? 1 : pool_.size(); }
  const std::vector<Section>& sections(int64_t batch);
  Ready& ready(const Section& section, int64_t chunk, int64_t batch, int threads, int contexts);
  void make_room();
  void run_section(const Section& section, const Pointers& inputs, const Pointers& outputs, int64_t batch,
                   double* seconds);
  void run_chunk(const Section& section, Ready& ready, int context, int64_t first, const Pointers& inputs,
                 const Pointers& outputs, Pool* pool, double* seconds) const;

  Program program_;
  const KernelTable& table_;
  Pool pool_;
  const bool separable_;                              // images do not meet, and the batch comes first everywhere
  std::map<int64_t, std::vector<Section>> sections_;  // by batch
  std::vector<std::vector<float>> between_;           // values that pass from a section to the next
  std::map<Key, Ready> ready_;
  int64_t call_ = 0, most_bytes_;
  std::mutex mutex_;
};

}  // namespace secateur
