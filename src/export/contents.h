// What all export formats have in common: everything of a model but its quantized linears.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "engine/model.h"

namespace whit {

// A linear's weight, read when it is first needed and let go of when it is written: of checkpoints
// that other tools have quantized it is made in memory.
class LazyWeight {
 public:
  LazyWeight(const Model& model, const Node& node);
  const LinearWeight& get();
  void drop() { weight_.reset(); }

 private:
  std::function<LinearWeight()> read_;
  std::optional<LinearWeight> weight_;
};

// Adds the tensors of a linear that is quantized, named <module>.<part>; false: it becomes floating
// point. Each piece reads the weight again when it is written.
using AddLinear = std::function<bool(HfContents& contents, const Node& node,
                                     const std::shared_ptr<LazyWeight>& weight)>;

HfContents export_contents(const Model& model, const AddLinear& add);

// Throws unless the format can hold groups of this size: its tools take whole ones only.
void check_whole_groups(const Node& node, const WeightView& weight, std::string_view format);

HfContents compressed_tensors_contents(const Model& model);
HfContents awq_contents(const Model& model);

}  // namespace whit
