#include "quantize/kv_layout.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/progress.h"

namespace whit {
namespace {

// The last sequences of held-out windows, where there are such windows.
CalibrationData held_out_part(const CalibrationData& data) {
  const int64_t wanted = std::max<int64_t>(1, kKvLayoutTokens / data.length);
  std::vector<int64_t> sequences;
  for (const Split split : {Split::kHeldOut, Split::kSearch}) {
    for (const CalibrationWindow& window : calibration_windows(data))
      for (int64_t i = 0; i < window.count && window.split == split; ++i)
        sequences.push_back(window.first + i);
    if (!sequences.empty()) break;
  }
  CalibrationData part;
  part.length = data.length;
  part.samples = std::min(wanted, std::ssize(sequences));
  for (auto sequence = sequences.end() - part.samples; sequence != sequences.end(); ++sequence)
    part.ids.insert(part.ids.end(), data.ids.begin() + *sequence * data.length,
                    data.ids.begin() + (*sequence + 1) * data.length);
  return part;
}

NodeRange up_to_attention(const Graph& graph, NodeRange layer) {
  for (NodeId id = layer.begin; id < layer.end; ++id)
    if (graph.node(id).op == Op::kAttention) return {layer.begin, id + 1};
  throw Error(ErrorKind::kUnsupported, "a layer without attention has no keys");
}

double loss(const Tensor& exact, const float* got) {
  double squares = 0, size = 0;
  const std::span<const float> want = exact.f32();
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - want[i];
    squares += difference * difference;
    size += static_cast<double>(want[i]) * want[i];
  }
  return size > 0 ? squares / size : 0;
}

}  // namespace

KvLayouts measure_kv_layouts(const ModelConfig& config, const Graph& graph,
                             const WeightProvider& original, const CalibrationData& data,
                             cpu::Isa isa, ThreadPool& pool, Accelerator* accelerator) {
  const CalibrationData part = held_out_part(data);
  const int64_t tokens = part.samples * part.length;
  const ProgramOptions options{.max_tokens = tokens, .isa = isa};
  const RopeTables rope = rope_tables(config, part.length);
  Matmul matmul(pool, isa);
  Tensor hidden = embed(graph, original, part, isa, pool);
  const std::vector<int64_t> starts(part.samples, 0), lengths(part.samples, part.length);
  const int64_t page_tokens = round_up(part.length, kKvBlockTokens);
  const ContiguousBatch batch(starts, lengths, page_tokens);
  Program::Input input;
  input.batch = batch.view();
  input.rope = &rope;

  KvLayouts layouts;
  Progress progress("choosing the layout of keys, layer", graph.layers());
  for (int index = 0; index < graph.layers(); ++index) {
    const NodeRange range = graph.layer(index);
    const NodeRange attention = up_to_attention(graph, range);
    input.hidden = hidden.data<float>();
    const auto attend = [&](Program& program, const KvFormat& format) {
      KvCache cache(graph, attention, format, part.samples, page_tokens);
      input.cache = &cache;
      return program.run(input);
    };
    {
      Program program(graph, attention, original, options, pool);
      const int64_t outputs = graph.value(graph.node(attention.end - 1).output).width;
      Tensor exact(DType::kF32, {tokens, outputs});
      std::memcpy(exact.data<float>(), attend(program, DType::kF32), tokens * outputs * 4);
      const auto losses = [&](KvType type) {
        const auto of = [&](KeyLayout keys) {
          return loss(exact, attend(program, KvFormat(type, std::vector(index + 1, keys))));
        };
        return KvLayerLosses{of(KeyLayout::kToken), of(KeyLayout::kChannel)};
      };
      layouts.int8.push_back(losses(KvType::kInt8));
      layouts.int4.push_back(losses(KvType::kInt4));
    }
    make_layer_pass(graph, range, original, rope, {.max_rows = tokens, .length = part.length},
                    matmul, isa, accelerator)
        ->run(hidden.data<float>(), tokens, Split::kSearch, LayerPass::Advance::kYes);
    progress.update(index + 1);
  }
  return layouts;
}

Json to_json(const KvLayouts& layouts) {
  const auto list = [](const std::vector<KvLayerLosses>& layers) {
    Json keys = Json::array(), losses = Json::array();
    for (const KvLayerLosses& layer : layers) {
      keys.push_back(name(layer.channel < layer.token ? KeyLayout::kChannel : KeyLayout::kToken));
      losses.push_back({layer.token, layer.channel});
    }
    return Json{{"keys", keys}, {"losses", losses}};
  };
  return {{"int8", list(layouts.int8)}, {"int4", list(layouts.int4)}};
}

}  // namespace whit
