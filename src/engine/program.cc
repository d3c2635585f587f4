#include "engine/program.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "engine/stack.h"
#include "engine/weight_packer.h"
#include "kernels/cpu/linear_layout.h"
#include "ops/reference/quantize.h"

namespace whit {
namespace {

using cpu::Activation;

// Up to this many rows every thread computes norms and activations for itself: cheaper than a
// barrier.
constexpr int64_t kRedundantRows = 4;

// Where a value lives: columns [column, column + width) of a buffer's rows.
struct Place {
  int buffer = -1;
  int64_t column = 0;
};

// An int8 copy of a value for linears whose group sums have one size.
struct Int8Place {
  int buffer = -1;
  int64_t k = 0, group_size = 0;
  float static_scale = 0;
};

// A copy of a value rounded to e4m3, as floats.
struct RoundedPlace {
  ValueId value = -1;
  int buffer = -1;
  float static_scale = 0;
};

struct RowBuffer {
  int64_t width = 0;  // bytes per row for int8 places, floats otherwise
  bool redundant = false;
  Buffer data, scales, sums;
};

// A few channels of a value, side by side.
struct Gathered {
  int buffer = -1;
  std::vector<int32_t> channels;
};

enum class StepKind {
  kEmbedding,
  kNorm,
  kQuantize,
  kRound,
  kGather,
  kLinear,
  kRope,
  kKvWrite,
  kAttention,
  kKvCommit,
  kSiluMul,
  kAdd
};

struct Step {
  StepKind kind;
  const Node* node = nullptr;
  std::string name;
  ValueId tap = -1;  // after this step the value is complete and is some linear's input
  int int8 = -1;     // kNorm, kQuantize, kSiluMul: output; kLinear: input. Index of an Int8Place
  bool float_output = true;  // kNorm, kSiluMul
  ValueId x = -1, y = -1, residual = -1;
  int weight = -1;  // index of packed weights, vectors
  int bias = -1;
  int gathered = -1;       // kGather: output; kLinear: input in place of x
  int rounded = -1;        // kRound: output; kLinear: input in place of x. Of RoundedPlaces
  bool redundant = false;  // may be computed by every thread for itself
  bool barrier = true;     // others read what this step wrote
};

}  // namespace

struct Program::Impl {
  const Graph& graph;
  NodeRange range;
  ProgramOptions options;
  ThreadPool& pool;
  const cpu::SmallOps& ops;

  std::vector<Step> steps;
  WeightPacker packer;
  std::vector<cpu::PackedWeight> weights;  // what the packer has made
  std::vector<LinearWeight> tables;        // embedding tables, not packed
  std::vector<Tensor> vectors;             // norm weights and biases
  std::vector<Place> places;               // by ValueId; buffer −1: not materialised
  std::vector<RowBuffer> buffers;
  std::vector<Int8Place> int8_places;
  std::vector<RoundedPlace> rounded_places;
  std::vector<Gathered> gathers;
  Buffer scratch;
  int64_t scratch_bytes = 0;
  ValueId input_value = -1, output_value = -1;

  // Of the run in progress.
  const Input* input = nullptr;

  Impl(const Graph& g, NodeRange r, const ProgramOptions& o, ThreadPool& p)
      : graph(g), range(r), options(o), pool(p), ops(cpu::small_ops(o.isa)) {
    places.resize(g.values().size());
  }

  bool placed(ValueId value) const { return value >= 0 && places[value].buffer >= 0; }

  // ---- lowering ----

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

  // ---- memory ----

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

    std::vector<bool> is_int8(count, false);
    for (const Int8Place& place : int8_places) is_int8[place.buffer] = true;
    std::vector<int> rename(count, -1), busy_until;
    std::vector<RowBuffer> physical;
    std::vector<bool> physical_int8;
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return first_use[a] < first_use[b]; });
    for (const int i : order) {
      if (last_use[i] < 0) continue;
      for (size_t p = 0; p < physical.size() && rename[i] < 0; ++p)
        if (busy_until[p] < first_use[i] && physical[p].width == buffers[i].width &&
            physical_int8[p] == is_int8[i] && physical[p].redundant == buffers[i].redundant)
          rename[i] = static_cast<int>(p);
      if (rename[i] < 0) {
        rename[i] = static_cast<int>(physical.size());
        physical.push_back({.width = buffers[i].width, .redundant = buffers[i].redundant});
        physical_int8.push_back(is_int8[i]);
        busy_until.push_back(-1);
      }
      busy_until[rename[i]] = last_use[i];
    }
    for (size_t p = 0; p < physical.size(); ++p) {
      RowBuffer& buffer = physical[p];
      int64_t rows = options.max_tokens;
      if (buffer.redundant) rows = std::max(rows, kRedundantRows * pool.size());
      if (physical_int8[p]) {
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
  }

  // ---- running ----

  // Rows of a value as worker `index` sees them.
  float* rows(ValueId value, const Worker& worker, bool redundant) {
    const Place& place = places[value];
    RowBuffer& buffer = buffers[place.buffer];
    const int64_t first = redundant && buffer.redundant ? kRedundantRows * worker.index : 0;
    return buffer.data.as<float>() + first * buffer.width + place.column;
  }
  int64_t stride(ValueId value) const {
    return value == input_value && input->hidden != nullptr ? graph.value(value).width
                                                            : buffers[places[value].buffer].width;
  }
  const float* read(ValueId value, const Worker& worker, bool redundant) {
    if (value == input_value && input->hidden != nullptr) return input->hidden;
    return rows(value, worker, redundant);
  }
  float* rows_of(int buffer_index, const Worker& worker, bool redundant) {
    RowBuffer& buffer = buffers[buffer_index];
    return buffer.data.as<float>() + (redundant ? kRedundantRows * worker.index : 0) * buffer.width;
  }
  Int8Rows int8_rows(int index, const Worker& worker, bool redundant) {
    if (index < 0) return {};
    const Int8Place& place = int8_places[index];
    RowBuffer& buffer = buffers[place.buffer];
    const int64_t first = redundant ? kRedundantRows * worker.index : 0;
    return {.q = buffer.data.as<int8_t>() + first * buffer.width,
            .stride = buffer.width,
            .scale = buffer.scales.as<float>() + first,
            .group_sums = buffer.sums.as<int32_t>() + first * ceil_div(place.k, place.group_size),
            .group_size = place.group_size,
            .static_scale = place.static_scale};
  }

  AttentionArgs attention_args(const Step& step, const Worker& worker) {
    const Node& node = *step.node;
    return {.q = read(node.inputs[0], worker, false),
            .q_stride = stride(node.inputs[0]),
            .heads = node.heads,
            .scale = 1.0f / std::sqrt(static_cast<float>(node.head_dim)),
            .sliding_window = node.sliding_window,
            .batch = input->batch,
            .cache = input->cache->layer(node.layer),
            .k = read(node.inputs[1], worker, false),
            .k_stride = stride(node.inputs[1]),
            .v = read(node.inputs[2], worker, false),
            .v_stride = stride(node.inputs[2]),
            .out = rows(step.y, worker, false),
            .out_stride = stride(step.y),
            .scratch = scratch.as<std::byte>()};
  }

  // Whether every thread computes norms and activations of `t` rows for itself.
  bool redundant_rows(int64_t t) const { return t <= kRedundantRows && pool.size() > 1; }
  bool barrier_after(const Step& step, int64_t t) const {
    return step.barrier && !(step.redundant && redundant_rows(t));
  }

  void execute(const Step& step, const Worker& all, bool tapped) {
    const int64_t t = input->batch.t;
    const bool redundant = redundant_rows(t);
    const Worker worker = redundant && step.redundant ? Worker{0, 1} : all;
    switch (step.kind) {
      case StepKind::kEmbedding:
        ops.embedding({.table = tables[step.weight].view,
                       .ids = input->ids,
                       .t = t,
                       .out = rows(step.y, all, false),
                       .out_stride = stride(step.y)},
                      worker);
        break;
      case StepKind::kNorm: {
        const bool floats = step.float_output || tapped;
        ops.rms_norm({.x = read(step.x, all, false),
                      .x_stride = stride(step.x),
                      .weight = vectors[step.weight].data<float>(),
                      .eps = static_cast<float>(step.node->eps),
                      .m = t,
                      .d = step.node->n,
                      .y = floats ? rows(step.y, all, redundant) : nullptr,
                      .y_stride = stride(step.y),
                      .q = int8_rows(step.int8, all, redundant)},
                     worker);
        break;
      }
      case StepKind::kQuantize:
        ops.quantize({.x = read(step.x, all, redundant),
                      .x_stride = stride(step.x),
                      .m = t,
                      .k = int8_places[step.int8].k,
                      .q = int8_rows(step.int8, all, redundant)},
                     worker);
        break;
      case StepKind::kRound: {
        const RoundedPlace& place = rounded_places[step.rounded];
        const int64_t width = buffers[place.buffer].width;
        const float* x = read(step.x, all, redundant);
        float* y = rows_of(place.buffer, all, redundant);
        for (int64_t row = worker.index; row < t; row += worker.count)
          reference::round_row_to_fp8(x + row * stride(step.x), width, place.static_scale,
                                      y + row * width);
        break;
      }
      case StepKind::kGather: {
        const std::vector<int32_t>& channels = gathers[step.gathered].channels;
        const auto count = static_cast<int64_t>(channels.size());
        const float* x = read(step.x, all, redundant);
        float* y = rows_of(gathers[step.gathered].buffer, all, redundant);
        for (int64_t row = worker.index; row < t; row += worker.count)
          for (int64_t i = 0; i < count; ++i)
            y[row * count + i] = x[row * stride(step.x) + channels[i]];
        break;
      }
      case StepKind::kSiluMul: {
        const bool floats = step.float_output || tapped;
        const Node& node = *step.node;
        ops.silu_mul({.gate = read(node.inputs[0], all, false),
                      .gate_stride = stride(node.inputs[0]),
                      .up = read(node.inputs[1], all, false),
                      .up_stride = stride(node.inputs[1]),
                      .m = t,
                      .f = graph.value(step.y).width,
                      .y = floats ? rows(step.y, all, redundant) : nullptr,
                      .y_stride = stride(step.y),
                      .q = int8_rows(step.int8, all, redundant)},
                     worker);
        break;
      }
      case StepKind::kLinear: {
        const cpu::PackedWeight& weight = weights[step.weight];
        cpu::LinearArgs args{.weight = &weight,
                             .m = t,
                             .x = nullptr,
                             .x_stride = 0,
                             .q = {},
                             .bias = step.bias < 0 ? nullptr : vectors[step.bias].data<float>(),
                             .residual = nullptr,
                             .residual_stride = 0,
                             .y = rows(step.y, all, false),
                             .y_stride = stride(step.y),
                             .scratch = scratch.as<std::byte>()};
        if (step.int8 >= 0) {
          args.q = int8_rows(step.int8, all, redundant);
        } else if (step.gathered >= 0 || step.rounded >= 0) {
          const int buffer = step.gathered >= 0 ? gathers[step.gathered].buffer
                                                : rounded_places[step.rounded].buffer;
          args.x = rows_of(buffer, all, redundant);
          args.x_stride = buffers[buffer].width;
        } else {
          args.x = read(step.x, all, redundant);
          args.x_stride = stride(step.x);
        }
        if (step.residual >= 0) {
          args.residual = read(step.residual, all, false);
          args.residual_stride = stride(step.residual);
        }
        weight.kernel->run(args, worker);
        break;
      }
      case StepKind::kRope:
        ops.rope({.x = rows(step.x, all, false),
                  .x_stride = stride(step.x),
                  .t = t,
                  .heads = step.node->heads,
                  .head_dim = step.node->head_dim,
                  .rotary_dims = step.node->head_dim,
                  .positions = input->batch.positions,
                  .cos = input->rope->cos.data(),
                  .sin = input->rope->sin.data()},
                 worker);
        break;
      case StepKind::kKvWrite:
      case StepKind::kKvCommit: {
        const Node& node = *step.node;
        const KvWriteArgs args = {.k = read(node.inputs[1], all, false),
                                  .k_stride = stride(node.inputs[1]),
                                  .v = read(node.inputs[2], all, false),
                                  .v_stride = stride(node.inputs[2]),
                                  .batch = input->batch,
                                  .cache = input->cache->layer(node.layer)};
        (step.kind == StepKind::kKvWrite ? ops.kv_write : ops.kv_commit)(args, worker);
        break;
      }
      case StepKind::kAttention: {
        const AttentionArgs args = attention_args(step, all);
        ops.attention(args, worker);
        if (ops.attention_in_parts(args, worker.count)) {
          pool.barrier();
          ops.attention_merge(args, worker);
        }
        break;
      }
      case StepKind::kAdd: {
        const Node& node = *step.node;
        ops.add({.x = read(node.inputs[0], all, false),
                 .r = read(node.inputs[1], all, false),
                 .y = rows(step.y, all, false),
                 .count = t * graph.value(step.y).width},
                worker);
        break;
      }
    }
    if (barrier_after(step, t)) pool.barrier();
  }
};

cpu::Activation activation_of(const QuantScheme& scheme) {
  if (!scheme.input_activations) return Activation::kFloat;
  return scheme.input_activations->type == NumberType::kFloat ? Activation::kFp8
                                                              : Activation::kInt8;
}

Program::Program(const Graph& graph, NodeRange range, const WeightProvider& weights,
                 const ProgramOptions& options, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(graph, range, options, pool)) {
  impl_->lower(weights);
  impl_->allocate();
}

Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

const float* Program::run(const Input& input, const InputTap& tap) {
  Impl& impl = *impl_;
  WHIT_DCHECK(input.batch.t <= impl.options.max_tokens);
  impl.input = &input;
  int64_t scratch = impl.scratch_bytes;
  for (const Step& step : impl.steps)
    if (step.kind == StepKind::kAttention)
      scratch =
          std::max(scratch, impl.ops.attention_scratch_bytes(impl.attention_args(step, Worker{})));
  if (scratch * impl.pool.size() > impl.scratch.bytes())
    impl.scratch = Buffer(scratch * impl.pool.size());

  // One task for the whole range; with a tap, one up to each tapped value.
  size_t begin = 0;
  if (tap && !impl.steps.empty() && impl.steps.front().kind == StepKind::kLinear)
    tap(impl.input_value, input.hidden, input.batch.t, impl.stride(impl.input_value));
  while (begin < impl.steps.size()) {
    size_t end = begin;
    while (end < impl.steps.size() && !(tap && impl.steps[end].tap >= 0)) ++end;
    if (end < impl.steps.size()) ++end;
    impl.pool.run([&](const Worker& worker) {
      for (size_t i = begin; i < end; ++i)
        impl.execute(impl.steps[i], worker, static_cast<bool>(tap));
    });
    const ValueId tapped = impl.steps[end - 1].tap;
    if (tap && tapped >= 0)
      tap(tapped, impl.rows(tapped, Worker{}, false), input.batch.t, impl.stride(tapped));
    begin = end;
  }
  return impl.rows(impl.output_value, Worker{}, false);
}

int64_t Program::weight_bytes() const {
  int64_t total = 0;
  for (const cpu::PackedWeight& weight : impl_->weights) total += weight.payload_bytes;
  return total;
}

int64_t Program::barriers(int64_t rows) const {
  if (impl_->pool.size() == 1) return 0;
  return std::count_if(impl_->steps.begin(), impl_->steps.end(),
                       [&](const Step& step) { return impl_->barrier_after(step, rows); });
}

std::vector<Program::StepInfo> Program::describe() const {
  std::vector<StepInfo> infos;
  for (const Step& step : impl_->steps) {
    StepInfo info{.name = step.name, .kernel = std::string(impl_->ops.name)};
    if (step.kind == StepKind::kLinear) {
      const cpu::PackedWeight& weight = impl_->weights[step.weight];
      info.kernel = weight.kernel->name;
      info.n = weight.n;
      info.k = weight.k;
      info.bytes = weight.payload_bytes;
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

}  // namespace whit
