#include "engine/program.h"

#include <algorithm>
#include <cmath>

#include "engine/lowering.h"
#include "kernels/cpu/linear_layout.h"
#include "ops/reference/quantize.h"

namespace whit {
namespace {

using Step = LoweredRange::Step;
using StepKind = LoweredRange::StepKind;

// From so many rows a thread on, each thread takes its own rows through all steps between two that
// mix rows, a few at a time: what a step writes is still in L2 when the next one reads it, and
// nobody waits. It reads all weights anew for each block of rows, and so does every thread: weights
// of a layer must stay in a small last-level cache, and of more threads that has not been measured.
// Blocks of 64 rows were the fastest (docs/cpu.md).
constexpr int64_t kLeastOwnRows = 128, kOwnBlockRows = 64, kMostOwnRowsBytes = int64_t{8} << 20;
constexpr int kMostOwnRowsThreads = 2;
// Rows of a tile, and of the two that kernels multiply at once.
constexpr int64_t kTileRows = 16, kTilePairRows = 32;

}  // namespace

struct Program::Impl : LoweredRange {
  const Graph& graph;
  ProgramOptions options;
  ThreadPool& pool;
  const cpu::SmallOps& ops;
  Buffer scratch;
  // Of the weights between two steps that mix rows, at most.
  int64_t most_stage_bytes = 0;

  // Of the run in progress.
  const Input* input = nullptr;

  Impl(const Graph& g, NodeRange range, const WeightProvider& provider, const ProgramOptions& o,
       ThreadPool& p)
      : LoweredRange(lower_range(g, range, provider, o, p)),
        graph(g),
        options(o),
        pool(p),
        ops(cpu::small_ops(o.isa)) {
    int64_t bytes = 0;
    for (const Step& step : steps) {
      if (mixes_rows(step)) bytes = 0;
      if (step.kind == StepKind::kLinear) bytes += weights[step.weight].payload_bytes;
      most_stage_bytes = std::max(most_stage_bytes, bytes);
    }
  }

  // Rows [begin, begin + count) of every value, as one worker sees them: of buffers that each
  // worker has of its own they are `copy` rows further.
  struct Rows {
    int64_t begin = 0, count = 0, copy = 0;
    int64_t first(const RowBuffer& buffer) const { return begin + (buffer.redundant ? copy : 0); }
  };
  float* rows_of(int buffer_index, const Rows& at) {
    RowBuffer& buffer = buffers[buffer_index];
    return buffer.data.as<float>() + at.first(buffer) * buffer.width;
  }
  float* rows(ValueId value, const Rows& at) {
    return rows_of(places[value].buffer, at) + places[value].column;
  }
  int64_t stride(ValueId value) const {
    return value == input_value && input->hidden != nullptr ? graph.value(value).width
                                                            : buffers[places[value].buffer].width;
  }
  const float* read(ValueId value, const Rows& at) {
    if (value == input_value && input->hidden != nullptr)
      return input->hidden + at.begin * stride(value);
    return rows(value, at);
  }
  Int8Rows int8_rows(int index, const Rows& at) {
    if (index < 0) return {};
    const Int8Place& place = int8_places[index];
    RowBuffer& buffer = buffers[place.buffer];
    const int64_t first = at.first(buffer);
    return {.q = buffer.data.as<int8_t>() + first * buffer.width,
            .stride = buffer.width,
            .scale = buffer.scales.as<float>() + first,
            .group_sums = buffer.sums.as<int32_t>() + first * ceil_div(place.k, place.group_size),
            .group_size = place.group_size,
            .static_scale = place.static_scale};
  }

  AttentionArgs attention_args(const Step& step) {
    const Node& node = *step.node;
    const Rows all{.count = input->batch.t};
    return {.q = read(node.inputs[0], all),
            .q_stride = stride(node.inputs[0]),
            .heads = node.heads,
            .scale = 1.0f / std::sqrt(static_cast<float>(node.head_dim)),
            .sliding_window = node.sliding_window,
            .batch = input->batch,
            .cache = input->cache->layer(node.layer),
            .k = read(node.inputs[1], all),
            .k_stride = stride(node.inputs[1]),
            .v = read(node.inputs[2], all),
            .v_stride = stride(node.inputs[2]),
            .out = rows(step.y, all),
            .out_stride = stride(step.y),
            .scratch = scratch.as<std::byte>()};
  }

  // Whether every thread computes norms and activations of `t` rows for itself.
  bool redundant_rows(int64_t t) const { return t <= kRedundantRows && pool.size() > 1; }
  // Whether every thread takes rows of its own through all steps up to the next one that mixes
  // rows.
  bool own_rows(int64_t t, bool tapped) const {
    return !tapped && pool.size() <= kMostOwnRowsThreads && t >= kLeastOwnRows * pool.size() &&
           most_stage_bytes <= kMostOwnRowsBytes;
  }
  static bool mixes_rows(const Step& step) {
    return step.kind == StepKind::kKvWrite || step.kind == StepKind::kAttention ||
           step.kind == StepKind::kKvCommit;
  }
  // Where the steps end that threads do from `begin` on without meeting: one, or all of own rows.
  size_t stage_end(size_t begin, int64_t t, bool tapped) const {
    size_t end = begin + 1;
    if (own_rows(t, tapped) && !mixes_rows(steps[begin]))
      while (end < steps.size() && !mixes_rows(steps[end])) ++end;
    return end;
  }
  // Of a stage's last step.
  bool barrier_after(const Step& step, int64_t t, bool tapped) const {
    // Who is through with the cache's tails may write the next layer's keys, which others read.
    if (own_rows(t, tapped)) return true;
    return step.barrier && !(step.redundant && redundant_rows(t));
  }

  // The steps of a stage as one worker does them.
  void run_stage(size_t begin, size_t end, const Worker& worker, bool tapped) {
    const int64_t t = input->batch.t;
    if (own_rows(t, tapped) && !mixes_rows(steps[begin])) {
      const Range share = split(t, kTileRows, worker);
      const int64_t most =
          round_up(cpu::even_tile(share.end - share.begin, kOwnBlockRows), kTilePairRows);
      for (int64_t row = share.begin; row < share.end; row += most)
        for (size_t i = begin; i < end; ++i)
          execute(steps[i], {.begin = row, .count = std::min(most, share.end - row)}, Worker{},
                  worker.index, tapped);
    } else {
      const bool redundant = redundant_rows(t);
      execute(steps[begin],
              {.begin = 0, .count = t, .copy = redundant ? kRedundantRows * worker.index : 0},
              redundant && steps[begin].redundant ? Worker{} : worker, worker.index, tapped);
    }
    if (barrier_after(steps[end - 1], t, tapped)) pool.barrier();
  }

  // Worker `index` of the pool is `worker` of those that do the rows `at`.
  void execute(const Step& step, const Rows& at, const Worker& worker, int index, bool tapped) {
    const int64_t t = at.count;
    switch (step.kind) {
      case StepKind::kEmbedding:
        ops.embedding({.table = tables[step.weight].view,
                       .ids = input->ids + at.begin,
                       .t = t,
                       .out = rows(step.y, at),
                       .out_stride = stride(step.y)},
                      worker);
        break;
      case StepKind::kNorm: {
        const bool floats = step.float_output || tapped;
        ops.rms_norm({.x = read(step.x, at),
                      .x_stride = stride(step.x),
                      .weight = vectors[step.weight].data<float>(),
                      .eps = static_cast<float>(step.node->eps),
                      .m = t,
                      .d = step.node->n,
                      .y = floats ? rows(step.y, at) : nullptr,
                      .y_stride = stride(step.y),
                      .q = int8_rows(step.int8, at)},
                     worker);
        break;
      }
      case StepKind::kQuantize:
        ops.quantize({.x = read(step.x, at),
                      .x_stride = stride(step.x),
                      .m = t,
                      .k = int8_places[step.int8].k,
                      .q = int8_rows(step.int8, at)},
                     worker);
        break;
      case StepKind::kRound: {
        const RoundedPlace& place = rounded_places[step.rounded];
        const int64_t width = buffers[place.buffer].width;
        const float* x = read(step.x, at);
        float* y = rows_of(place.buffer, at);
        for (int64_t row = worker.index; row < t; row += worker.count)
          reference::round_row_to_fp8(x + row * stride(step.x), width, place.static_scale,
                                      y + row * width);
        break;
      }
      case StepKind::kGather: {
        const std::vector<int32_t>& channels = gathers[step.gathered].channels;
        const auto count = static_cast<int64_t>(channels.size());
        const float* x = read(step.x, at);
        float* y = rows_of(gathers[step.gathered].buffer, at);
        for (int64_t row = worker.index; row < t; row += worker.count)
          for (int64_t i = 0; i < count; ++i)
            y[row * count + i] = x[row * stride(step.x) + channels[i]];
        break;
      }
      case StepKind::kSiluMul: {
        const bool floats = step.float_output || tapped;
        const Node& node = *step.node;
        ops.silu_mul({.gate = read(node.inputs[0], at),
                      .gate_stride = stride(node.inputs[0]),
                      .up = read(node.inputs[1], at),
                      .up_stride = stride(node.inputs[1]),
                      .m = t,
                      .f = graph.value(step.y).width,
                      .y = floats ? rows(step.y, at) : nullptr,
                      .y_stride = stride(step.y),
                      .q = int8_rows(step.int8, at)},
                     worker);
        break;
      }
      case StepKind::kLinear: {
        const cpu::PackedWeight& weight = weights[step.weight];
        cpu::LinearArgs args{
            .weight = &weight,
            .m = t,
            .x = nullptr,
            .x_stride = 0,
            .q = {},
            .bias = step.bias < 0 ? nullptr : vectors[step.bias].data<float>(),
            .residual = nullptr,
            .residual_stride = 0,
            .y = rows(step.y, at),
            .y_stride = stride(step.y),
            .scratch = scratch.as<std::byte>() + (worker.count == 1 ? index * scratch_bytes : 0)};
        if (step.int8 >= 0) {
          args.q = int8_rows(step.int8, at);
        } else if (step.gathered >= 0 || step.rounded >= 0) {
          const int buffer = step.gathered >= 0 ? gathers[step.gathered].buffer
                                                : rounded_places[step.rounded].buffer;
          args.x = rows_of(buffer, at);
          args.x_stride = buffers[buffer].width;
        } else {
          args.x = read(step.x, at);
          args.x_stride = stride(step.x);
        }
        if (step.residual >= 0) {
          args.residual = read(step.residual, at);
          args.residual_stride = stride(step.residual);
        }
        weight.kernel->run(args, worker);
        break;
      }
      case StepKind::kRope:
        ops.rope({.x = rows(step.x, at),
                  .x_stride = stride(step.x),
                  .t = t,
                  .heads = step.node->heads,
                  .head_dim = step.node->head_dim,
                  .rotary_dims = step.node->head_dim,
                  .positions = input->batch.positions + at.begin,
                  .cos = input->rope->cos.data(),
                  .sin = input->rope->sin.data()},
                 worker);
        break;
      case StepKind::kKvWrite:
      case StepKind::kKvCommit: {
        const Node& node = *step.node;
        const KvWriteArgs args = {.k = read(node.inputs[1], at),
                                  .k_stride = stride(node.inputs[1]),
                                  .v = read(node.inputs[2], at),
                                  .v_stride = stride(node.inputs[2]),
                                  .batch = input->batch,
                                  .cache = input->cache->layer(node.layer)};
        (step.kind == StepKind::kKvWrite ? ops.kv_write : ops.kv_commit)(args, worker);
        break;
      }
      case StepKind::kAttention: {
        const AttentionArgs args = attention_args(step);
        ops.attention(args, worker);
        if (ops.attention_in_parts(args, worker.count)) {
          pool.barrier();
          ops.attention_merge(args, worker);
        }
        break;
      }
      case StepKind::kAdd: {
        const Node& node = *step.node;
        ops.add({.x = read(node.inputs[0], at),
                 .r = read(node.inputs[1], at),
                 .y = rows(step.y, at),
                 .count = t * graph.value(step.y).width},
                worker);
        break;
      }
    }
  }
};

cpu::Activation activation_of(const QuantScheme& scheme) {
  if (!scheme.input_activations) return cpu::Activation::kFloat;
  return scheme.input_activations->type == NumberType::kFloat ? cpu::Activation::kFp8
                                                              : cpu::Activation::kInt8;
}

Program::Program(const Graph& graph, NodeRange range, const WeightProvider& weights,
                 const ProgramOptions& options, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(graph, range, weights, options, pool)) {}

Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

const float* Program::run(const Input& input, const InputTap& tap) {
  Impl& impl = *impl_;
  WHIT_DCHECK(input.batch.t <= impl.options.max_tokens);
  impl.input = &input;
  int64_t scratch = impl.scratch_bytes;
  for (const Step& step : impl.steps)
    if (step.kind == StepKind::kAttention)
      scratch = std::max(scratch, impl.ops.attention_scratch_bytes(impl.attention_args(step)));
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
      for (size_t i = begin, next = i; i < end; i = next) {
        next = impl.stage_end(i, input.batch.t, static_cast<bool>(tap));
        impl.run_stage(i, next, worker, static_cast<bool>(tap));
      }
    });
    const ValueId tapped = impl.steps[end - 1].tap;
    if (tap && tapped >= 0) tap(tapped, impl.rows(tapped, {}), input.batch.t, impl.stride(tapped));
    begin = end;
  }
  return impl.rows(impl.output_value, {});
}

int64_t Program::weight_bytes() const {
  int64_t total = 0;
  for (const cpu::PackedWeight& weight : impl_->weights) total += weight.payload_bytes;
  return total;
}

int64_t Program::barriers(int64_t rows) const {
  if (impl_->pool.size() == 1) return 0;
  int64_t count = 0;
  for (size_t i = 0, next = i; i < impl_->steps.size(); i = next) {
    next = impl_->stage_end(i, rows, false);
    count += impl_->barrier_after(impl_->steps[next - 1], rows, false);
  }
  return count;
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
