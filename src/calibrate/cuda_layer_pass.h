// A layer's forward pass and the sums over its linears' inputs in f32 on a GPU, nothing fused: the
// time goes into products. Resident: the layer's weights, one window's activations and, where it
// observes, both splits' Gram matrices.
#pragma once

#include "calibrate/accelerator.h"
#include "calibrate/cuda_memory.h"
#include "kernels/cuda/product_f32.h"

namespace whit {

// Throws kUnsupported for weights that are not floating point or that int8 activations belong to.
std::unique_ptr<LayerPass> cuda_layer_pass(CudaMemory& memory, cuda::ProductF32& product,
                                           const Graph& graph, NodeRange range,
                                           const WeightProvider& weights, const RopeTables& rope,
                                           const LayerPassOptions& options);

}  // namespace whit
