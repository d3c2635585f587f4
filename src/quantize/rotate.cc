#include "quantize/rotate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "graph/graph.h"

namespace whit {
namespace {

// What becomes of one linear, embedding or bias.
struct Change {
  std::vector<float> columns;   // of a reader of a norm: that norm's weight [K]; empty: none
  bool rotate_columns = false;  // W·Q
  bool rotate_rows = false;     // Qᵀ·W
};

Tensor changed(Tensor w, const Change& change, const Rotation& rotation) {
  const bool vector =
      w.shape().size() == 1;  // a bias: one row, whose entries are the rows of a weight
  const int64_t n = w.dim(0), k = vector ? 1 : w.dim(1);
  float* values = w.data<float>();
  if (!vector)
    for (int64_t row = 0; row < n; ++row) {
      for (size_t i = 0; i < change.columns.size(); ++i) values[row * k + i] *= change.columns[i];
      if (change.rotate_columns) rotation.apply(values + row * k);
    }
  if (change.rotate_rows) {
    std::vector<float> column(n);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t row = 0; row < n; ++row) column[row] = values[row * k + i];
      rotation.apply(column.data());
      for (int64_t row = 0; row < n; ++row) values[row * k + i] = column[row];
    }
  }
  return w;
}

// Where a linear's input comes from and where its output goes.
Change change_of(const Graph& graph, const Node& node, const WeightProvider& weights) {
  Change change;
  if (node.op == Op::kEmbedding) {
    change.rotate_columns = true;
    return change;
  }
  const NodeId producer = graph.value(node.inputs[0]).producer;
  if (producer >= 0 && graph.node(producer).op == Op::kRmsNorm) {
    const Tensor norm = weights.norm(graph.node(producer));
    change.columns.assign(norm.f32().begin(), norm.f32().end());
    change.rotate_columns = true;
  }
  for (const NodeId reader : graph.value(node.output).consumers)
    change.rotate_rows |= graph.node(reader).op == Op::kAdd;
  return change;
}

// A tensor that is made when its first rows are asked for.
HfContents::Weight lazy(std::string name, Shape shape, std::function<Tensor()> make) {
  auto made = std::make_shared<Tensor>();
  const int64_t width = shape.back();
  return {.name = std::move(name),
          .shape = std::move(shape),
          .read_rows =
              [made, width, make = std::move(make)](int64_t begin, int64_t end, float* out) {
                if (made->empty()) *made = make();
                std::copy_n(made->data<float>() + begin * width, (end - begin) * width, out);
              },
          .written = [made] { *made = Tensor(); }};
}

}  // namespace

Rotation::Rotation(int64_t size, uint64_t seed) : power_(1), odd_(size), signs_(size) {
  while (odd_ % 2 == 0) {
    odd_ /= 2;
    power_ *= 2;
  }
  std::mt19937_64 random(seed);
  for (float& sign : signs_) sign = (random() & 1) != 0 ? 1.0f : -1.0f;
  hartley_.resize(odd_ * odd_);
  for (int64_t i = 0; i < odd_; ++i)
    for (int64_t j = 0; j < odd_; ++j) {
      const double angle =
          2 * std::numbers::pi * static_cast<double>(i * j % odd_) / static_cast<double>(odd_);
      hartley_[i * odd_ + j] = static_cast<float>((std::cos(angle) + std::sin(angle)) /
                                                  std::sqrt(static_cast<double>(odd_)));
    }
}

void Rotation::apply(float* row) const {
  for (int64_t i = 0; i < power_ * odd_; ++i) row[i] *= signs_[i];
  mix(row);
}

void Rotation::undo(float* row) const {
  mix(row);
  for (int64_t i = 0; i < power_ * odd_; ++i) row[i] *= signs_[i];
}

void Rotation::mix(float* row) const {
  const int64_t size = power_ * odd_;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(power_)));
  for (int64_t i = 0; i < size; ++i) row[i] *= scale;
  // Entry a·odd + b: Hadamard over a, Hartley over b.
  for (int64_t step = odd_; step < size; step *= 2)
    for (int64_t first = 0; first < size; first += 2 * step)
      for (int64_t i = first; i < first + step; ++i) {
        const float x = row[i], y = row[i + step];
        row[i] = x + y;
        row[i + step] = x - y;
      }
  if (odd_ == 1) return;
  std::vector<float> mixed(odd_);
  for (int64_t first = 0; first < size; first += odd_) {
    for (int64_t j = 0; j < odd_; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < odd_; ++i) sum += row[first + i] * hartley_[i * odd_ + j];
      mixed[j] = static_cast<float>(sum);
    }
    std::copy(mixed.begin(), mixed.end(), row + first);
  }
}

void write_rotated(const Model& model, const std::filesystem::path& out, uint64_t seed) {
  if (model.checkpoint() == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} is quantized already; rotate the model it was made from", model.description());
  const Checkpoint& checkpoint = *model.checkpoint();
  const Graph& graph = model.graph();
  const WeightProvider weights = model.weights();
  const Rotation rotation(model.config().hidden_size, seed);
  HfContents contents;
  contents.config = checkpoint.config();
  contents.config["tie_word_embeddings"] = false;
  contents.text_files = {{"generation_config.json", checkpoint.generation_config().dump(1) + "\n"},
                         {"tokenizer.json", checkpoint.tokenizer_json()},
                         {"tokenizer_config.json", checkpoint.tokenizer_config().dump(1) + "\n"}};
  for (const Node& node : graph.nodes()) {
    if (node.op == Op::kRmsNorm)
      contents.weights.push_back(lazy(node.weight_name, {node.n}, [n = node.n] {
        Tensor ones(DType::kF32, {n});
        for (float& value : ones.f32()) value = 1;
        return ones;
      }));
    if (node.op != Op::kLinear && node.op != Op::kEmbedding) continue;
    const Shape shape = {node.n, node.k};
    const auto change = std::make_shared<Change>(change_of(graph, node, weights));
    const auto make = [&checkpoint, &rotation, change](const std::string& name) {
      Tensor loaded = checkpoint.load_f32(name);
      checkpoint.release(checkpoint.get(name));
      return changed(std::move(loaded), *change, rotation);
    };
    contents.weights.push_back(
        lazy(node.name + ".weight", shape, [make, from = node.weight_name] { return make(from); }));
    if (node.bias)
      contents.weights.push_back(lazy(node.name + ".bias", {node.n},
                                      [make, from = node.name + ".bias"] { return make(from); }));
  }
  write_hf_directory(contents, out, DType::kF32);
}

}  // namespace whit
