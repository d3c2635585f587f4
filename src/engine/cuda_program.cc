#include "engine/cuda_program.h"

#include <cmath>
#include <optional>
#include <utility>

namespace whit {
namespace {

constexpr int64_t kRowAlignment = 16;  // values: what linears ask of the rows they read

int64_t aligned(int64_t width) { return round_up(width, kRowAlignment); }

}  // namespace

cuda::LinearFormat cuda_format_of(const LinearWeight& weight) {
  const bool int8 = weight.activation == cpu::Activation::kInt8;
  const bool fp8 = weight.activation == cpu::Activation::kFp8;
  switch (weight.view.format) {
    case WeightFormat::kInt4Group:
      if (fp8) return cuda::LinearFormat::kW4AFp8;
      if (!int8) return cuda::LinearFormat::kW4A16;
      // In other groups two-level scales are read as what they are stored as, scales.
      return weight.view.two_level && weight.view.group_size == 128
                 ? cuda::LinearFormat::kW4A8TwoLevel
                 : cuda::LinearFormat::kW4A8;
    case WeightFormat::kInt8Channel:
      return int8 ? cuda::LinearFormat::kW8A8 : cuda::LinearFormat::kW8A16;
    case WeightFormat::kFp8Channel:
      return cuda::LinearFormat::kFp8;
    default:
      return cuda::LinearFormat::kBf16;
  }
}

namespace {

cuda::TableFormat table_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return cuda::TableFormat::kF32;
    case WeightFormat::kF16:
      return cuda::TableFormat::kF16;
    case WeightFormat::kBF16:
      return cuda::TableFormat::kBF16;
    case WeightFormat::kInt4Group:
      return cuda::TableFormat::kInt4Group;
    case WeightFormat::kInt8Channel:
      return cuda::TableFormat::kInt8Channel;
    default:
      return cuda::TableFormat::kFp8Channel;
  }
}

[[noreturn]] void unsupported(const std::string& node, std::string_view why) {
  throw Error(ErrorKind::kUnsupported, "{}: {}; use --backend cpu", node, why);
}

}  // namespace

CudaRows::CudaRows(cuda::Device& device, const Graph& graph, int64_t max_tokens) {
  int64_t hidden_width = 0, stacked = 0, widest = 0;
  for (const Node& node : graph.nodes()) {
    if (node.op == Op::kEmbedding) hidden_width = node.k;
    if (node.op == Op::kLinear) widest = std::max(widest, node.k);
  }
  // Values that are read by something else than an addition or nothing wait in y.
  for (int layer = 0; layer < graph.layers(); ++layer)
    for (const ScalingGroup& group : scaling_groups(graph, graph.layer(layer))) {
      int64_t width = 0;
      for (const NodeId id : group.linears) width += aligned(graph.node(id).n);
      stacked = std::max(stacked, width);
    }
  x_stride = aligned(widest);
  y_stride = aligned(stacked);
  const char* purpose = "the rows of a step";
  hidden = cuda::DeviceBuffer(device, max_tokens * hidden_width * 4, purpose);
  x = cuda::DeviceBuffer(device, max_tokens * x_stride * 2, purpose);
  q = cuda::DeviceBuffer(device, max_tokens * x_stride, purpose);
  scale = cuda::DeviceBuffer(device, max_tokens * 4, purpose);
  y = cuda::DeviceBuffer(device, max_tokens * y_stride * 2, purpose);
  activated = cuda::DeviceBuffer(device, cuda::kMostMadeRows * x_stride * 4, purpose);
  // Columns that fill rows up are read, and never written.
  for (const cuda::DeviceBuffer* buffer : {&hidden, &x, &q, &scale, &y})
    device.fill_zero(buffer->as<void>(), buffer->bytes());
}

CudaProgram::CudaProgram(cuda::Device& device, cuda::LinearRunner& linears, CudaRows& rows,
                         const Graph& graph, NodeRange range, const WeightProvider& weights,
                         const RopeTables& rope, ThreadPool& pool)
    : device_(device),
      linears_(linears),
      rows_(rows),
      graph_(graph),
      rope_(rope),
      places_(graph.values().size()) {
  lower(range, weights, pool);
}

void CudaProgram::run(const Input& input) {
  for (const Step& step : steps_) step(input);
}

void CudaProgram::add(std::string name, std::string kernel, Step step) {
  infos_.push_back({.name = std::move(name), .kernel = std::move(kernel)});
  steps_.push_back(std::move(step));
}

const void* CudaProgram::upload(const void* data, int64_t bytes) {
  memory_.emplace_back(device_, bytes, "the model's weights");
  device_.upload_and_wait(memory_.back().as<void>(), data, bytes);
  return memory_.back().as<void>();
}

const float* CudaProgram::upload(const Tensor& tensor) {
  return static_cast<const float*>(upload(tensor.data<float>(), tensor.bytes()));
}

CudaProgram::CodeRows CudaProgram::code_rows(ValueId value, const LinearWeight& reader) {
  const bool fp8 = reader.activation == cpu::Activation::kFp8;
  return {value, fp8 ? cuda::CodeType::kE4m3 : cuda::CodeType::kInt8, reader.static_scale};
}

cuda::RowsOut CudaProgram::rows_for(ValueId value) {
  cuda::RowsOut out;
  bool floats = false;
  std::optional<CodeRows> codes;  // of the first reader that has them
  for (const auto& [first, stack] : stacks_) {
    if (graph_.node(first).inputs[0] != value) continue;
    const LinearWeight& weight = stack.parts.front();
    if (weight.activation == cpu::Activation::kFloat) {
      floats = true;
    } else if (!codes) {
      codes = code_rows(value, weight);
    } else if (*codes != code_rows(value, weight)) {
      floats = true;  // quantized again before that product
    }
  }
  if (floats) {
    out.y = rows_.x.as<void>();
    out.y_stride = rows_.x_stride;
  }
  if (codes) {
    out.q = rows_.q.as<int8_t>();
    out.q_stride = rows_.x_stride;
    out.codes = codes->type;
    out.scale = rows_.scale.as<float>();
    out.static_scale = codes->static_scale;
    quantized_ = *codes;
  }
  return out;
}

void CudaProgram::make_rows(ValueId value, int64_t rows, const cuda::RowSource& source,
                            const std::function<void()>& make) {
  const auto reader = only_readers_.find(value);
  if (reader != only_readers_.end() && linears_.makes_rows(reader->second, rows, source.kind))
    waiting_ = source;
  else
    make();
}

void CudaProgram::lower(NodeRange range, const WeightProvider& provider, ThreadPool& pool) {
  stacks_ = make_stacks(graph_, range, provider);
  std::map<ValueId, int> readers;
  for (const auto& [first, stack] : stacks_) {
    const Node& node = graph_.node(first);
    int64_t n = 0;
    for (const LinearWeight& part : stack.parts) n += part.view.n;
    const LinearWeight& front = stack.parts.front();
    only_readers_[node.inputs[0]] = {
        .format = cuda_format_of(front), .n = n, .k = node.k, .group_size = front.view.group_size};
    ++readers[node.inputs[0]];
  }
  std::erase_if(only_readers_, [&](const auto& entry) { return readers[entry.first] > 1; });
  for (const auto& [first, stack] : stacks_)
    if (!stack.parts.front().salient_channels.empty())
      unsupported(graph_.node(first).name,
                  "salient channels have no CUDA kernel; quantize without --salient, or run on the "
                  "CPU");
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph_.node(id);
    switch (node.op) {
      case Op::kEmbedding:
        lower_embedding(node, provider);
        break;
      case Op::kRmsNorm: {
        if (node.n % 2 != 0) unsupported(node.name, "rows of an odd width have no CUDA kernel");
        const bool gathers = id == range.begin;  // of the head: some rows alone
        cuda::RmsNormArgs args{.x = rows_.hidden.as<float>(),
                               .rows = nullptr,
                               .weight = upload(provider.norm(node)),
                               .eps = static_cast<float>(node.eps),
                               .t = 0,
                               .d = node.n,
                               .out = rows_for(node.output)};
        const cuda::RowSource source{.kind = cuda::RowSource::Kind::kRmsNorm,
                                     .x = args.x,
                                     .x_stride = args.d,
                                     .weight = args.weight,
                                     .eps = args.eps,
                                     .static_scale = args.out.static_scale};
        add(node.name, "rms_norm",
            [this, args, source, gathers, value = node.output](const Input& input) mutable {
              args.t = input.batch.t;
              args.rows = gathers ? input.rows : nullptr;
              const auto make = [&] { cuda::small_ops().rms_norm(args, device_.stream()); };
              if (args.rows != nullptr) return make();
              make_rows(value, args.t, source, make);
            });
        break;
      }
      case Op::kLinear: {
        const auto found = stacks_.find(id);
        if (found != stacks_.end()) lower_linear(found->second, provider, pool);
        break;
      }
      case Op::kRope:
        // The kernel that writes keys and values rotates.
        places_[node.output] = places_[node.inputs[0]];
        break;
      case Op::kAttention:
        lower_attention(node);
        break;
      case Op::kSiluMul: {
        const Place gate = places_[node.inputs[0]], up = places_[node.inputs[1]];
        cuda::SiluMulArgs args{.gate = gate.data,
                               .gate_stride = gate.stride,
                               .up = up.data,
                               .up_stride = up.stride,
                               .t = 0,
                               .f = graph_.value(node.output).width,
                               .out = rows_for(node.output)};
        add(node.name, "silu_mul", [this, args](const Input& input) mutable {
          args.t = input.batch.t;
          if (!std::exchange(is_activated_, false)) {
            cuda::small_ops().silu_mul(args, device_.stream());
            return;
          }
          // The product before it has: the next one quantizes, or takes it as it is.
          if (activated_ == nullptr) return;
          waiting_ = {.kind = cuda::RowSource::Kind::kActivated,
                      .x = rows_.activated.as<void>(),
                      .x_stride = rows_.x_stride,
                      .magnitude = std::exchange(activated_, nullptr),
                      .static_scale = args.out.static_scale};
        });
        break;
      }
      case Op::kAdd:
        break;  // part of the product before it
    }
  }
  stacks_.clear();
  // A product makes the next one's magnitudes zero: there must be another.
  if (activations_ > 1) {
    magnitudes_ = cuda::DeviceBuffer(
        device_, activations_ * cuda::kMostMadeRows * int64_t{sizeof(uint32_t)}, "magnitudes");
    device_.fill_zero(magnitudes_.as<void>(), magnitudes_.bytes());
  }
}

const cuda::LinearWeight* CudaProgram::reader_of_activation(const LinearStack& stack) const {
  if (stack.nodes.size() != 2) return nullptr;
  const Node& gate = graph_.node(stack.nodes[0]);
  const Node& up = graph_.node(stack.nodes[1]);
  const auto& consumers = graph_.value(gate.output).consumers;
  if (gate.n != up.n || consumers.size() != 1 || graph_.value(up.output).consumers != consumers)
    return nullptr;
  const Node& silu = graph_.node(consumers[0]);
  if (silu.op != Op::kSiluMul || silu.inputs[0] != gate.output || silu.inputs[1] != up.output)
    return nullptr;
  const auto reader = only_readers_.find(silu.output);
  return reader == only_readers_.end() ? nullptr : &reader->second;
}

void CudaProgram::lower_embedding(const Node& node, const WeightProvider& provider) {
  const LinearWeight weight = provider.linear(node);
  const WeightView& view = weight.view;
  cuda::EmbeddingArgs args{
      .table = {.format = table_format(view.format), .k = view.k, .group_size = view.group_size},
      .ids = nullptr,
      .t = 0,
      .out = rows_.hidden.as<float>()};
  args.table.data = upload(view.data, view.n * view.data_row_bytes());
  if (view.scales != nullptr)
    args.table.scales = upload(view.scales, view.n * view.scale_row_bytes());
  if (view.zeros != nullptr)
    args.table.zeros =
        static_cast<const uint8_t*>(upload(view.zeros, view.n * view.zero_row_bytes()));
  if (weight.packed) weight.packed();
  add(node.name, "embedding", [this, args](const Input& input) mutable {
    args.ids = input.ids;
    args.t = input.batch.t;
    cuda::small_ops().embedding(args, device_.stream());
  });
}

void CudaProgram::lower_linear(LinearStack& stack, const WeightProvider& provider,
                               ThreadPool& pool) {
  const Node& node = graph_.node(stack.nodes.front());
  const LinearWeight& front = stack.parts.front();
  const cuda::LinearFormat format = cuda_format_of(front);
  const ValueId value = node.inputs[0];

  std::vector<WeightView> views;
  int64_t n = 0;
  bool any_bias = false;
  std::string names;
  for (size_t i = 0; i < stack.nodes.size(); ++i) {
    const Node& part = graph_.node(stack.nodes[i]);
    views.push_back(stack.parts[i].view);
    n += part.n;
    any_bias |= part.bias;
    names += (names.empty() ? "" : " ") + part.name;
  }
  linears_.require(format);
  const int64_t bytes = cuda::packed_bytes(format, n, node.k, front.view.group_size);
  Buffer packed(bytes);
  cuda::LinearArgs args;
  args.weight = cuda::pack_linear(format, views, packed.as<std::byte>(), pool);
  args.weight.data = upload(packed.as<std::byte>(), bytes);
  for (const LinearWeight& part : stack.parts)
    if (part.packed) part.packed();
  weight_bytes_ += bytes;

  if (any_bias) {
    Tensor bias = Tensor::zeros(DType::kF32, {n});
    int64_t column = 0;
    for (const NodeId id : stack.nodes) {
      const Node& part = graph_.node(id);
      if (part.bias) {
        const Tensor values = provider.bias(part);
        std::copy(values.f32().begin(), values.f32().end(), bias.f32().begin() + column);
      }
      column += part.n;
    }
    args.bias = upload(bias);
  }

  // Its input: bf16 rows, or codes, made here where the producer did not.
  if (cuda::input_of(format) != cuda::LinearInput::kBf16) {
    const CodeRows codes = code_rows(value, front);
    args.x = rows_.q.as<void>();
    args.x_scale = rows_.scale.as<float>();
    if (quantized_ != codes) {
      cuda::QuantizeArgs quantize{.x = rows_.x.as<void>(),
                                  .x_stride = rows_.x_stride,
                                  .t = 0,
                                  .k = node.k,
                                  .out = {.q = rows_.q.as<int8_t>(),
                                          .codes = codes.type,
                                          .q_stride = rows_.x_stride,
                                          .scale = rows_.scale.as<float>(),
                                          .static_scale = front.static_scale}};
      quantized_ = codes;
      const cuda::RowSource source{.kind = cuda::RowSource::Kind::kQuantize,
                                   .x = quantize.x,
                                   .x_stride = quantize.x_stride,
                                   .static_scale = front.static_scale};
      add(graph_.value(value).name + ".quantize", "quantize",
          [this, quantize, source, value](const Input& input) mutable {
            quantize.t = input.batch.t;
            make_rows(value, quantize.t, source,
                      [&] { cuda::small_ops().quantize(quantize, device_.stream()); });
          });
    }
  } else {
    args.x = rows_.x.as<void>();
  }
  args.x_stride = rows_.x_stride;

  // Its output: added to the residual stream, the logits, or bf16 rows.
  const auto& consumers = graph_.value(node.output).consumers;
  const bool adds =
      stack.nodes.size() == 1 && consumers.size() == 1 && graph_.node(consumers[0]).op == Op::kAdd;
  const bool logits = consumers.empty();
  if (adds) {
    args.y = rows_.hidden.as<void>();
    args.residual = rows_.hidden.as<void>();
    args.y_stride = args.residual_stride = n;
    args.y_type = cuda::OutputType::kF32;
  } else if (logits) {
    args.y_stride = n;
    args.y_type = cuda::OutputType::kF32;
  } else {
    // Behind what the stacks before it, with the same input, write.
    int64_t column = 0;
    for (const auto& [first, other] : stacks_)
      if (first < stack.nodes.front() && graph_.node(first).inputs[0] == value)
        for (const NodeId id : other.nodes) column += aligned(graph_.node(id).n);
    auto* y = rows_.y.as<uint16_t>() + column;
    args.y = y;
    args.y_stride = rows_.y_stride;
    column = 0;
    for (const NodeId id : stack.nodes) {
      places_[graph_.node(id).output] = {y + column, rows_.y_stride};
      column += graph_.node(id).n;
    }
  }
  const cuda::LinearWeight* reader = reader_of_activation(stack);
  // In bf16 what it activates is what the reader takes; codes need magnitudes, which those that
  // have some make zero for one another.
  const bool codes =
      reader != nullptr && cuda::input_of(reader->format) != cuda::LinearInput::kBf16;
  const bool activates =
      reader != nullptr && only_readers_.contains(value) && linears_.activates(args.weight, 1) &&
      (!codes || linears_.makes_rows(*reader, 1, cuda::RowSource::Kind::kActivated));
  const int64_t activation = activates && codes ? activations_++ : -1;
  add(names, std::string(cuda::name(format)),
      [this, args, logits, activates, codes, activation](const Input& input) mutable {
        args.m = input.batch.t;
        args.source = std::exchange(waiting_, {});
        args.activated = {};
        if (logits) args.y = input.logits;
        is_activated_ = activates && args.source.kind != cuda::RowSource::Kind::kNone &&
                        linears_.activates(args.weight, args.m) && (!codes || activations_ > 1);
        if (is_activated_ && codes) {
          const auto magnitude = [&](int64_t i) {
            return magnitudes_.as<uint32_t>() + i % activations_ * cuda::kMostMadeRows;
          };
          args.activated = {.y = rows_.activated.as<void>(),
                            .stride = rows_.x_stride,
                            .magnitude = magnitude(activation),
                            .next_magnitude = magnitude(activation + 1)};
        } else if (is_activated_) {
          args.activated = {.y = rows_.x.as<void>(), .stride = rows_.x_stride};
        }
        activated_ = args.activated.magnitude;
        linears_.run(args, device_.stream());
      });
  infos_.back().n = n;
  infos_.back().k = node.k;
  infos_.back().bytes = bytes;
}

void CudaProgram::lower_attention(const Node& node) {
  const Place q = places_[node.inputs[0]], k = places_[node.inputs[1]], v = places_[node.inputs[2]];
  if (node.head_dim > cuda::kMaxHeadDim || node.head_dim % 16 != 0)
    unsupported(node.name, fmt::format("heads of {} values have no CUDA kernel (multiples of 16 up "
                                       "to {} have)",
                                       node.head_dim, cuda::kMaxHeadDim));
  const int64_t group = node.heads * node.head_dim / graph_.value(node.inputs[1]).width;
  if (group > cuda::kDecodeRows)
    unsupported(node.name, fmt::format("{} query heads share a key/value head; the CUDA kernels "
                                       "take at most {}",
                                       group, cuda::kDecodeRows));
  if (cos_ == nullptr) {
    cos_ = static_cast<const float*>(
        upload(rope_.cos.data(), static_cast<int64_t>(rope_.cos.size()) * 4));
    sin_ = static_cast<const float*>(
        upload(rope_.sin.data(), static_cast<int64_t>(rope_.sin.size()) * 4));
  }
  cuda::RopeKvArgs rope{.q = q.data,
                        .q_stride = q.stride,
                        .k = k.data,
                        .k_stride = k.stride,
                        .v = v.data,
                        .v_stride = v.stride,
                        .heads = node.heads,
                        .cos = cos_,
                        .sin = sin_,
                        .batch = {},
                        .cache = {}};
  const int layer = node.layer;
  add(node.name + ".rope_kv_write", "rope_kv_write",
      [this, rope, layer](const Input& input) mutable {
        rope.batch = input.batch;
        rope.cache = input.cache->layer(layer);
        cuda::small_ops().rope_kv_write(rope, device_.stream());
      });
  cuda::AttentionArgs args{.q = q.data,
                           .q_stride = q.stride,
                           .heads = node.heads,
                           .scale = 1.0f / std::sqrt(static_cast<float>(node.head_dim)),
                           .sliding_window = node.sliding_window,
                           .batch = {},
                           .cache = {},
                           .out = rows_.x.as<void>(),
                           .out_stride = rows_.x_stride,
                           .max_chunks = 0,
                           .partials = nullptr,
                           .counters = nullptr,
                           .tiles = nullptr,
                           .tile_count = 0};
  add(node.name, "attention", [this, args, layer](const Input& input) mutable {
    args.batch = input.batch;
    args.cache = input.cache->layer(layer);
    args.max_chunks = input.max_chunks(args.sliding_window);
    args.partials = input.partials;
    args.counters = input.counters;
    args.tiles = input.tiles;
    args.tile_count = input.tile_count;
    args.widened = input.widened;
    args.widened_first = input.widened_first;
    args.widened_chunks = input.widened_chunks;
    args.widened_most = input.widened_most;
    cuda::small_ops().attention(args, device_.stream());
  });
}

}  // namespace whit
