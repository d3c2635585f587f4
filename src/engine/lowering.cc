#include "engine/lowering.h"

#include <algorithm>
#include <map>

#include "engine/stack.h"
#include "engine/weight_packer.h"
#include "kernels/cpu/linear_layout.h"

namespace whit {
namespace {

using cpu::Activation;

struct Lowering : LoweredRange {
  const Graph& graph;
  NodeRange range;
  const ProgramOptions& options;
  ThreadPool& pool;
  WeightPacker packer;

  Lowering(const Graph& g, NodeRange r, const ProgramOptions& o, ThreadPool& p)
      : graph(g), range(r), options(o), pool(p) {
    places.resize(g.values().size());
  }

  LoweredRange run(const WeightProvider& provider) {
    lower(provider);
    allocate();
    return std::move(*this);
  }

  int add_buffer(int64_t width, bool redundant) {
    buffers.push_back({.width = width, .redundant = redundant});
    return static_cast<int>(buffers.size()) - 1;
  }

  int add_vector(Tensor vector) {
    vectors.push_back(std::move(vector));
    return static_cast<int>(vectors.size()) - 1;
  }

  bool inside(NodeId id) const { return id >= range.begin && id < range.end; }

  // The int8 copy of `value` that a stack reads; made by the value's producer where that can, by a
  // step of its own else.
  int int8_place(ValueId value, const LinearStack& stack,
                 std::map<ValueId, std::vector<int>>& known) {
    const WeightView& view = stack.parts.front().view;
    const int64_t group_size = view.format == WeightFormat::kInt4Group ? view.group_size : view.k;
    const float static_scale = stack.parts.front().static_scale;
    for (const int index : known[value])
      if (int8_places[index].group_size == group_size &&
          int8_places[index].static_scale == static_scale)
        return index;
    const int buffer = add_buffer(cpu::int8_row_stride(view.k), true);
    int8_places.push_back({buffer, view.k, group_size, static_scale});
    known[value].push_back(static_cast<int>(int8_places.size()) - 1);
    return known[value].back();
  }

  // The same of a copy rounded to e4m3; a step of its own makes it, behind the value's producer.
  int rounded_place(ValueId value, const LinearStack& stack) {
    const float static_scale = stack.parts.front().static_scale;
    for (size_t i = 0; i < rounded_places.size(); ++i)
      if (rounded_places[i].value == value && rounded_places[i].static_scale == static_scale)
        return static_cast<int>(i);
    rounded_places.push_back({value, add_buffer(graph.value(value).width, true), static_scale});
    return static_cast<int>(rounded_places.size()) - 1;
  }

  void lower(const WeightProvider& provider) {
    input_value = graph.range_input(range);
    output_value = graph.range_output(range);
    std::map<NodeId, LinearStack> stacks = make_stacks(graph, range, provider);

    // Which int8 copies and whether a float copy each value needs, before its producer's step is
    // made.
    std::map<ValueId, std::vector<int>> int8_of;
    std::map<NodeId, int> int8_of_stack, rounded_of_stack;
    std::map<ValueId, bool> float_needed;
    std::map<NodeId, bool> in_stack;
    for (const auto& [first, stack] : stacks) {
      const ValueId value = graph.node(first).inputs[0];
      for (const NodeId id : stack.nodes) in_stack[id] = true;
      if (stack.parts.front().activation == Activation::kInt8)
        int8_of_stack[first] = int8_place(value, stack, int8_of);
      else
        float_needed[value] = true;
      if (stack.parts.front().activation == Activation::kFp8)
        rounded_of_stack[first] = rounded_place(value, stack);
      if (!stack.parts.front().salient_channels.empty()) float_needed[value] = true;
    }
    float_needed[output_value] = true;

    for (NodeId id = range.begin; id < range.end; ++id) {
      const Node& node = graph.node(id);
      switch (node.op) {
        case Op::kEmbedding: {
          tables.push_back(provider.linear(node));
          places[node.output] = {add_buffer(node.k, false), 0};
          steps.push_back(
              {.kind = StepKind::kEmbedding, .node = &node, .name = node.name, .y = node.output});
          steps.back().weight = static_cast<int>(tables.size()) - 1;
          break;
        }
        case Op::kRmsNorm: {
          Step step{.kind = StepKind::kNorm,
                    .node = &node,
                    .name = node.name,
                    .x = node.inputs[0],
                    .y = node.output};
          step.weight = add_vector(provider.norm(node));
          add_activation(std::move(step), int8_of[node.output], float_needed[node.output], node.n);
          break;
        }
        case Op::kLinear:
          if (stacks.contains(id)) {
            const auto rounded = rounded_of_stack.find(id);
            lower_linear(id, stacks.at(id), int8_of_stack,
                         rounded == rounded_of_stack.end() ? -1 : rounded->second, provider);
          }
          break;
        case Op::kRope:
          places[node.output] = places[node.inputs[0]];
          steps.push_back(
              {.kind = StepKind::kRope, .node = &node, .name = node.name, .x = node.inputs[0]});
          break;
        case Op::kAttention: {
          steps.push_back(
              {.kind = StepKind::kKvWrite, .node = &node, .name = node.name + ".kv_write"});
          places[node.output] = {add_buffer(graph.value(node.output).width, false), 0};
          steps.push_back(
              {.kind = StepKind::kAttention, .node = &node, .name = node.name, .y = node.output});
          steps.back().tap = node.output;
          // Nothing reads the tails before the next run.
          steps.push_back({.kind = StepKind::kKvCommit,
                           .node = &node,
                           .name = node.name + ".kv_commit",
                           .barrier = false});
          add_copies(node.output, int8_of[node.output]);
          break;
        }
        case Op::kSiluMul: {
          Step step{.kind = StepKind::kSiluMul, .node = &node, .name = node.name, .y = node.output};
          add_activation(std::move(step), int8_of[node.output], float_needed[node.output],
                         graph.value(node.output).width);
          break;
        }
        case Op::kAdd:
          // Adds that no product absorbed.
          if (!placed(node.output)) {
            places[node.output] = {add_buffer(graph.value(node.output).width, false), 0};
            steps.push_back(
                {.kind = StepKind::kAdd, .node = &node, .name = node.name, .y = node.output});
          }
          break;
      }
    }
    weights = std::move(packer).pack(pool);
    // A range that starts at a value which linears read directly.
    std::vector<Step> quantize_input;
    std::swap(quantize_input, steps);
    add_copies(input_value, int8_of[input_value]);
    steps.insert(steps.end(), std::make_move_iterator(quantize_input.begin()),
                 std::make_move_iterator(quantize_input.end()));
  }

  // A norm or SiLU·mul: one step writes the float result (if anything reads it) and the first int8
  // copy.
  void add_activation(Step step, const std::vector<int>& int8, bool float_needed, int64_t width) {
    step.redundant = true;
    step.float_output = float_needed || int8.size() != 1;
    step.int8 = int8.empty() ? -1 : int8.front();
    step.tap = step.y;
    // A buffer even where nothing reads floats: a tap may.
    places[step.y] = {add_buffer(width, true), 0};
    const ValueId value = step.y;
    steps.push_back(std::move(step));
    add_copies(value, int8.empty() ? std::span<const int>() : std::span(int8).subspan(1));
  }

  // Steps that make a value's int8 copies, and all that are rounded to e4m3.
  void add_copies(ValueId value, std::span<const int> int8) {
    for (const int index : int8) add_quantize(value, index);
    for (size_t i = 0; i < rounded_places.size(); ++i)
      if (rounded_places[i].value == value)
        steps.push_back({.kind = StepKind::kRound,
                         .name = graph.value(value).name + ".round",
                         .x = value,
                         .rounded = static_cast<int>(i),
                         .redundant = true});
  }

  void add_quantize(ValueId value, int index) {
    steps.push_back({.kind = StepKind::kQuantize,
                     .name = graph.value(value).name + ".quantize",
                     .int8 = index,
                     .x = value,
                     .redundant = true});
  }

  std::string weight_names(const LinearStack& stack) const {
    std::string names;
    for (const NodeId id : stack.nodes)
      names += (names.empty() ? "" : ", ") + graph.node(id).weight_name;
    return names;
  }

  void lower_linear(NodeId first, LinearStack& stack, const std::map<NodeId, int>& int8_of_stack,
                    int rounded, const WeightProvider& provider) {
    const Node& node = graph.node(first);
    Step step{.kind = StepKind::kLinear, .node = &node, .x = node.inputs[0], .y = node.output};
    const LinearWeight& front = stack.parts.front();
    const int gathered = add_gather(node.inputs[0], front.salient_channels);
    // f16 sources are packed by the exact f32 kernel.
    const WeightFormat format =
        front.view.format == WeightFormat::kF16 ? WeightFormat::kF32 : front.view.format;
    const cpu::LinearKernel& kernel =
        cpu::linear_kernel(format, front.activation, options.isa, front.view.two_level);
    std::vector<WeightView> views;
    for (const LinearWeight& part : stack.parts) views.push_back(part.view);
    step.weight = packer.add(kernel, std::move(views), weight_names(stack), [&stack] {
      for (const LinearWeight& part : stack.parts)
        if (part.packed) part.packed();
    });
    if (front.activation == Activation::kInt8) step.int8 = int8_of_stack.at(first);
    step.rounded = rounded;

    int64_t total = 0;
    bool any_bias = false;
    for (const NodeId id : stack.nodes) {
      total += graph.node(id).n;
      any_bias |= graph.node(id).bias;
      step.name += (step.name.empty() ? "" : " ") + graph.node(id).name;
    }
    const int buffer = add_buffer(total, false);
    int64_t column = 0;
    Tensor bias = any_bias ? Tensor::zeros(DType::kF32, {total}) : Tensor();
    for (const NodeId id : stack.nodes) {
      places[graph.node(id).output] = {buffer, column};
      if (graph.node(id).bias) {
        const Tensor part = provider.bias(graph.node(id));
        std::copy(part.f32().begin(), part.f32().end(), bias.f32().begin() + column);
      }
      column += graph.node(id).n;
    }
    if (any_bias) step.bias = add_vector(std::move(bias));

    // y + residual in one go where the product's only reader is an addition to something already
    // computed.
    const auto& consumers = graph.value(node.output).consumers;
    if (stack.nodes.size() == 1 && consumers.size() == 1 && inside(consumers[0]) &&
        graph.node(consumers[0]).op == Op::kAdd) {
      const Node& add = graph.node(consumers[0]);
      const ValueId other = add.inputs[0] == node.output ? add.inputs[1] : add.inputs[0];
      if (placed(other) || other == input_value) {
        step.residual = other;
        places[add.output] = places[node.output];
      }
    }
    steps.push_back(std::move(step));
    if (gathered >= 0) add_salient(node, stack, gathered);
  }

  // Before the product whose barrier makes it visible; −1 where there are no channels.
  int add_gather(ValueId value, std::span<const int32_t> channels) {
    if (channels.empty()) return -1;
    const int buffer = add_buffer(static_cast<int64_t>(channels.size()), true);
    gathers.push_back({buffer, {channels.begin(), channels.end()}});
    steps.push_back({.kind = StepKind::kGather,
                     .name = graph.value(value).name + ".gather",
                     .x = value,
                     .gathered = static_cast<int>(gathers.size()) - 1,
                     .redundant = true,
                     .barrier = false});
    return steps.back().gathered;
  }

  // The second, small product of a stack, added to what the first one put out.
  void add_salient(const Node& node, const LinearStack& stack, int gathered) {
    Step step{.kind = StepKind::kLinear, .node = &node, .y = node.output, .residual = node.output};
    step.gathered = gathered;
    std::vector<WeightView> views;
    for (const LinearWeight& part : stack.parts) views.push_back(part.salient);
    const cpu::LinearKernel& kernel =
        cpu::linear_kernel(WeightFormat::kBF16, Activation::kFloat, options.isa);
    step.weight = packer.add(kernel, std::move(views), weight_names(stack));
    for (const NodeId id : stack.nodes)
      step.name += (step.name.empty() ? "" : " ") + graph.node(id).name + ".salient";
    steps.push_back(std::move(step));
  }

  // Buffers whose lives do not overlap share memory: after lowering, each is renamed to a physical
  // one.
  void allocate() {
    const auto count = static_cast<int>(buffers.size());
    std::vector<int> first_use(count, INT32_MAX), last_use(count, -1);
    const auto touch = [&](int buffer, int step) {
      if (buffer < 0) return;
      first_use[buffer] = std::min(first_use[buffer], step);
      last_use[buffer] = std::max(last_use[buffer], step);
    };
    const auto touch_value = [&](ValueId value, int step) {
      if (placed(value)) touch(places[value].buffer, step);
    };
    for (int i = 0; i < static_cast<int>(steps.size()); ++i) {
      const Step& step = steps[i];
      // Without a barrier after it, a slow thread may still be in this step while others are past
      // it: what it reads stays until the next barrier.
      int end = i;
      while (end + 1 < static_cast<int>(steps.size()) &&
             (steps[end].redundant || !steps[end].barrier))
        ++end;
      for (const int at : {i, end}) {
        touch_value(step.x, at);
        touch_value(step.y, at);
        touch_value(step.residual, at);
        if (step.int8 >= 0) touch(int8_places[step.int8].buffer, at);
        if (step.gathered >= 0) touch(gathers[step.gathered].buffer, at);
        if (step.rounded >= 0) touch(rounded_places[step.rounded].buffer, at);
        if (step.kind != StepKind::kLinear && step.node != nullptr)
          for (const ValueId value : step.node->inputs) touch_value(value, at);
      }
    }
    touch_value(output_value, static_cast<int>(steps.size()));

    // Sums a row of int8 places, 0 of others. Buffers that share memory have each row at one place:
    // threads that have rows of their own need not be at the same step.
    std::vector<int64_t> sums(count, 0);
    for (const Int8Place& place : int8_places)
      sums[place.buffer] = ceil_div(place.k, place.group_size);
    std::vector<int> rename(count, -1), busy_until;
    std::vector<RowBuffer> physical;
    std::vector<int64_t> physical_sums;
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return first_use[a] < first_use[b]; });
    for (const int i : order) {
      if (last_use[i] < 0) continue;
      for (size_t p = 0; p < physical.size() && rename[i] < 0; ++p)
        if (busy_until[p] < first_use[i] && physical[p].width == buffers[i].width &&
            physical_sums[p] == sums[i] && physical[p].redundant == buffers[i].redundant)
          rename[i] = static_cast<int>(p);
      if (rename[i] < 0) {
        rename[i] = static_cast<int>(physical.size());
        physical.push_back({.width = buffers[i].width, .redundant = buffers[i].redundant});
        physical_sums.push_back(sums[i]);
        busy_until.push_back(-1);
      }
      busy_until[rename[i]] = last_use[i];
    }
    for (size_t p = 0; p < physical.size(); ++p) {
      RowBuffer& buffer = physical[p];
      int64_t rows = options.max_tokens;
      if (buffer.redundant) rows = std::max(rows, kRedundantRows * pool.size());
      if (physical_sums[p] > 0) {
        buffer.data = Buffer(rows * buffer.width);
        buffer.scales = Buffer(rows * 4);
        buffer.sums = Buffer(rows * ceil_div(buffer.width, 32) * 4);
      } else {
        buffer.data = Buffer(rows * buffer.width * 4);
      }
    }
    for (Place& place : places)
      if (place.buffer >= 0) place.buffer = rename[place.buffer];
    for (Int8Place& place : int8_places) place.buffer = rename[place.buffer];
    for (Gathered& gather : gathers) gather.buffer = rename[gather.buffer];
    for (RoundedPlace& place : rounded_places) place.buffer = rename[place.buffer];
    buffers = std::move(physical);

    for (const Step& step : steps)
      if (step.kind == StepKind::kLinear)
        scratch_bytes = std::max(scratch_bytes, weights[step.weight].kernel->scratch_bytes(
                                                    weights[step.weight], options.max_tokens));
    scratch_bytes = round_up(scratch_bytes, 64);
  }
};

}  // namespace

LoweredRange lower_range(const Graph& graph, NodeRange range, const WeightProvider& weights,
                         const ProgramOptions& options, ThreadPool& pool) {
  return Lowering(graph, range, options, pool).run(weights);
}

}  // namespace whit
