#include "quantize/layer_log.h"

#include <algorithm>
#include <cstring>

namespace whit {
namespace {

// Whoever adds a member to WeightView must keep it in the log as well.
static_assert(sizeof(WeightView) == 8 * sizeof(int64_t));

constexpr int64_t kMaxGroup = 1 << 20;

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : rest_(bytes) {}
  bool done() const { return rest_.empty(); }
  const uint8_t* take(uint64_t bytes) {
    if (bytes > rest_.size()) throw Error(ErrorKind::kInvalidData, "a layer's log ends too early");
    const uint8_t* data = rest_.data();
    rest_ = rest_.subspan(bytes);
    return data;
  }
  uint64_t number() {
    uint64_t value;
    std::memcpy(&value, take(sizeof(value)), sizeof(value));
    return value;
  }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace

void LayerOutput::put(uint64_t number) { put(&number, sizeof(number)); }

void LayerOutput::put(const void* data, int64_t bytes) {
  const auto* from = static_cast<const uint8_t*>(data);
  if (log_ != nullptr) log_->insert(log_->end(), from, from + bytes);
  if (file_ != nullptr) file_->write(data, static_cast<size_t>(bytes));
}

void LayerOutput::begin(Call call, const Node* node) {
  put(static_cast<uint64_t>(call));
  if (node != nullptr) put(static_cast<uint64_t>(id_of(*node)));
}

void LayerOutput::write_linear(const Node& node, const WeightView& weight) {
  if (writer_ != nullptr) writer_->write_linear(node, weight);
  if (!logs()) return;
  begin(Call::kLinear, &node);
  put(static_cast<uint64_t>(weight.format));
  put(static_cast<uint64_t>(weight.group_size));
  put(weight.two_level ? 1 : 0);
  put(weight.zeros != nullptr ? 1 : 0);
  put(weight.data, weight.n * weight.data_row_bytes());
  put(weight.scales, weight.n * weight.scale_row_bytes());
  put(weight.zeros, weight.n * weight.zero_row_bytes());
}

void LayerOutput::write_salient(const Node& node, std::span<const int32_t> channels,
                                const WeightView& weight) {
  if (writer_ != nullptr) writer_->write_salient(node, channels, weight);
  salient_[id_of(node)] = std::ssize(channels);
  if (!logs()) return;
  begin(Call::kSalient, &node);
  put(channels.size());
  put(channels.data(), static_cast<int64_t>(channels.size_bytes()));
  put(weight.data, weight.n * weight.data_row_bytes());
}

void LayerOutput::write_static_scale(const Node& node, float scale) {
  if (writer_ != nullptr) writer_->write_static_scale(node, scale);
  if (!logs()) return;
  begin(Call::kStaticScale, &node);
  put(&scale, sizeof(scale));
}

void LayerOutput::write_vector(const std::string& name, std::span<const float> values) {
  if (writer_ != nullptr) writer_->write_vector(name, values);
  if (!logs()) return;
  begin(Call::kVector, nullptr);
  put(name.size());
  put(name.data(), static_cast<int64_t>(name.size()));
  put(values.size());
  put(values.data(), static_cast<int64_t>(values.size_bytes()));
}

void LayerOutput::replay(std::span<const uint8_t> log) {
  Reader reader(log);
  // Values are copied out: they need not be aligned in the log.
  const auto copy = [&reader](uint64_t bytes) {
    const uint8_t* data = reader.take(bytes);
    return std::vector<uint8_t>(data, data + bytes);
  };
  const auto node = [&]() -> const Node& {
    const uint64_t id = reader.number();
    if (id >= graph_.nodes().size() || graph_.nodes()[id].op != Op::kLinear)
      throw Error(ErrorKind::kInvalidData, "a layer's log names a node that is no linear");
    return graph_.nodes()[id];
  };
  while (!reader.done()) {
    switch (static_cast<Call>(reader.number())) {
      case Call::kLinear: {
        const Node& linear = node();
        WeightView view{.n = linear.n, .k = linear.k};
        const uint64_t format = reader.number();
        if (format > static_cast<uint64_t>(WeightFormat::kFp8Channel))
          throw Error(ErrorKind::kInvalidData, "a layer's log names an unknown format");
        view.format = static_cast<WeightFormat>(format);
        view.group_size = static_cast<int64_t>(reader.number());
        const bool grouped = view.format == WeightFormat::kInt4Group;
        if (view.group_size < (grouped ? 1 : 0) || view.group_size > kMaxGroup)
          throw Error(ErrorKind::kInvalidData, "a layer's log names a group of {}",
                      view.group_size);
        view.two_level = reader.number() != 0;
        const bool has_zeros = reader.number() != 0;
        if (has_zeros && !grouped)
          throw Error(ErrorKind::kInvalidData, "a layer's log gives zero points to {} weights",
                      name(view.format));
        const auto data = copy(static_cast<uint64_t>(view.n * view.data_row_bytes()));
        const auto scales = copy(static_cast<uint64_t>(view.n * view.scale_row_bytes()));
        view.data = data.data();
        view.scales = scales.data();
        view.zeros = scales.data();  // anything but null gives the size of the zero points
        const auto zeros =
            copy(has_zeros ? static_cast<uint64_t>(view.n * view.zero_row_bytes()) : 0);
        view.zeros = has_zeros ? zeros.data() : nullptr;
        write_linear(linear, view);
        break;
      }
      case Call::kStaticScale: {
        const Node& linear = node();
        float scale;
        std::memcpy(&scale, reader.take(sizeof(scale)), sizeof(scale));
        write_static_scale(linear, scale);
        break;
      }
      case Call::kSalient: {
        const Node& linear = node();
        const uint64_t count = reader.number();
        if (count < 1 || count > static_cast<uint64_t>(linear.k))
          throw Error(ErrorKind::kInvalidData, "a layer's log holds {} salient channels", count);
        std::vector<int32_t> channels(count);
        std::memcpy(channels.data(), reader.take(count * sizeof(int32_t)), count * sizeof(int32_t));
        WeightView view{
            .format = WeightFormat::kBF16, .n = linear.n, .k = static_cast<int64_t>(count)};
        const auto data = copy(static_cast<uint64_t>(view.n * view.data_row_bytes()));
        view.data = data.data();
        write_salient(linear, channels, view);
        break;
      }
      case Call::kVector: {
        const auto name = copy(reader.number());
        const uint64_t count = reader.number();
        std::vector<float> values(
            static_cast<size_t>(std::min<uint64_t>(count, log.size() / sizeof(float))));
        const uint8_t* from = reader.take(checked_mul(count, sizeof(float), "a layer's log"));
        if (count > 0) std::memcpy(values.data(), from, values.size() * sizeof(float));
        write_vector(std::string(name.begin(), name.end()), values);
        break;
      }
      default:
        throw Error(ErrorKind::kInvalidData, "a layer's log holds an unknown call");
    }
  }
}

}  // namespace whit
