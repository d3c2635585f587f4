// A range of graph nodes lowered for a GPU: linears stacked where they share an input, packed and
// uploaded; norms and activations write rows of bf16, int8 or e4m3, as their readers want; the
// residual stream is f32, and products are added to it where they are made.
#pragma once

#include <functional>
#include <map>

#include "engine/cuda_kv_cache.h"
#include "engine/stack.h"
#include "kernels/cuda/linear.h"

namespace whit {

// How a linear runs on the GPU.
cuda::LinearFormat cuda_format_of(const LinearWeight& weight);

// Rows of all values that live at one time, shared by the programs of a model.
struct CudaRows {
  CudaRows(cuda::Device& device, const Graph& graph, int64_t max_tokens);

  int64_t x_stride = 0, y_stride = 0;
  cuda::DeviceBuffer hidden;     // f32 [T, D]: the residual stream
  cuda::DeviceBuffer x;          // bf16 [T, x_stride]: what linears read
  cuda::DeviceBuffer q;          // codes [T, x_stride]: the same
  cuda::DeviceBuffer scale;      // f32 [T]
  cuda::DeviceBuffer y;          // bf16 [T, y_stride]: what linears write
  cuda::DeviceBuffer activated;  // f32 [kMostMadeRows, x_stride]: silu · mul where a product has it
};

class CudaProgram {
 public:
  // What a run needs besides weights; device pointers.
  struct Input {
    const int32_t* ids = nullptr;   // where the range begins with an embedding
    const int32_t* rows = nullptr;  // of the hidden rows that the first norm reads; null: all
    cuda::DeviceBatch batch;        // batch.t rows
    const CudaKvCache* cache = nullptr;
    // Chunks of the longest context of sequences with few rows, by sliding window (0: none).
    std::function<int64_t(int64_t window)> max_chunks;
    float* partials = nullptr;
    int32_t* counters = nullptr;
    const int32_t* tiles = nullptr;
    void* widened = nullptr;
    const int32_t* widened_first = nullptr;
    int64_t widened_chunks = 0, widened_most = 0;
    int64_t tile_count = 0;
    float* logits = nullptr;  // f32 [T, V], where the range ends with lm_head
  };

  CudaProgram(cuda::Device& device, cuda::LinearRunner& linears, CudaRows& rows, const Graph& graph,
              NodeRange range, const WeightProvider& weights, const RopeTables& rope,
              ThreadPool& pool);

  // Enqueues the range.
  void run(const Input& input);

  int64_t weight_bytes() const { return weight_bytes_; }
  const std::vector<Program::StepInfo>& describe() const { return infos_; }

 private:
  struct Place {
    void* data = nullptr;
    int64_t stride = 0;
  };
  using Step = std::function<void(const Input&)>;
  // Rows of codes that a linear reads.
  struct CodeRows {
    ValueId value = -1;
    cuda::CodeType type = cuda::CodeType::kInt8;
    float static_scale = 0;
    bool operator==(const CodeRows&) const = default;
  };

  void lower(NodeRange range, const WeightProvider& provider, ThreadPool& pool);
  void lower_embedding(const Node& node, const WeightProvider& provider);
  void lower_linear(LinearStack& stack, const WeightProvider& provider, ThreadPool& pool);
  void lower_attention(const Node& node);
  static CodeRows code_rows(ValueId value, const LinearWeight& reader);
  // Where a value that linears read is written, and which rows of codes go with it.
  cuda::RowsOut rows_for(ValueId value);
  // The product that alone reads silu(gate) · up of a stack of gate and up, or null.
  const cuda::LinearWeight* reader_of_activation(const LinearStack& stack) const;
  // Runs `make`, which writes rows that linears read, or leaves it to the product that alone reads
  // them, where that makes its rows of a source: few, of codes.
  void make_rows(ValueId value, int64_t rows, const cuda::RowSource& source,
                 const std::function<void()>& make);
  void add(std::string name, std::string kernel, Step step);
  const void* upload(const void* data, int64_t bytes);
  const float* upload(const Tensor& tensor);

  cuda::Device& device_;
  cuda::LinearRunner& linears_;
  CudaRows& rows_;
  const Graph& graph_;
  const RopeTables& rope_;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  std::map<NodeId, LinearStack> stacks_;  // while lowering
  std::vector<Place> places_;             // by ValueId: bf16 values in rows_.y
  CodeRows quantized_;                    // in rows_.q at this point of the program
  std::vector<cuda::DeviceBuffer> memory_;
  std::vector<Step> steps_;
  std::vector<Program::StepInfo> infos_;
  int64_t weight_bytes_ = 0;
  // By value, the weight of the one product that reads it (its format and shape).
  std::map<ValueId, cuda::LinearWeight> only_readers_;
  cuda::RowSource waiting_;  // of the next product
  // Products of gates and ups that may activate what they make; the largest magnitudes of each
  // one's rows; those that the product before this step has made, or null.
  int64_t activations_ = 0;
  cuda::DeviceBuffer magnitudes_;
  const uint32_t* activated_ = nullptr;
  bool is_activated_ = false;  // what the product before this step has made, with or without those
};

}  // namespace whit
