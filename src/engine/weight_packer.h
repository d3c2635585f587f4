// Packs all weights of a program in one task of the pool.
//
// They lie in one block of huge pages: of pages of 4 KB each costs a fault, all of them together
// as much time as packing takes. Each thread packs, in the order of add(), the rows that it will
// read in products of few rows, so that they lie in its own NUMA node's memory; who gets ahead, or
// is through, takes what is left of the others', so that nobody waits for a thread that has to
// share its CPU, and no source stays resident for long because half of it is packed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/program.h"
#include "kernels/cpu/table.h"

namespace whit {

class WeightPacker {
 public:
  // Returns the index of the weight in what pack() returns. Throws as pack_linear does. What the
  // views point to stays alive until pack() has returned.
  //   name   what errors of packing call it
  //   done   called on some thread of the pool once the weight is packed; may be empty
  int add(const cpu::LinearKernel& kernel, std::vector<WeightView> parts, std::string name,
          std::function<void()> done = {});
  // The packed forms of everything that was added.
  std::vector<cpu::PackedWeight> pack(ThreadPool& pool) &&;

 private:
  struct Job {
    std::vector<WeightView> parts;
    std::string name;
    std::function<void()> done;
  };
  std::vector<Job> jobs_;
  std::vector<cpu::PackedWeight> packed_;  // by job
};

}  // namespace whit
