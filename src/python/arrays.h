// numpy arrays from the engine's values, and tensors of any library as the engine's input.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <vector>

#include "whit/types.h"

namespace whit::python {

namespace nb = nanobind;

using FloatArray = nb::ndarray<nb::numpy, float>;

// Takes the values over; nothing is copied.
inline FloatArray to_numpy(Array array) {
  auto* values = new std::vector<float>(std::move(array.values));
  const nb::capsule owner(
      values, [](void* pointer) noexcept { delete static_cast<std::vector<float>*>(pointer); });
  const std::vector<size_t> shape(array.shape.begin(), array.shape.end());
  return FloatArray(values->data(), shape.size(), shape.data(), owner);
}

// Whatever speaks DLPack or the buffer protocol: numpy, torch (bf16 included), …
using AnyTensor = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

// safetensors' name of a dtype; empty for those that no checkpoint's weights have.
inline std::string dtype_name(const nb::dlpack::dtype& dtype) {
  if (dtype.lanes != 1) return "";
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (code == nb::dlpack::dtype_code::Bfloat && dtype.bits == 16) return "BF16";
  if (code != nb::dlpack::dtype_code::Float) return "";
  return dtype.bits == 16 ? "F16" : dtype.bits == 32 ? "F32" : dtype.bits == 64 ? "F64" : "";
}

inline TensorView tensor_view(std::string name, const AnyTensor& tensor) {
  TensorView view{.name = std::move(name), .dtype = dtype_name(tensor.dtype())};
  for (size_t axis = 0; axis < tensor.ndim(); ++axis)
    view.shape.push_back(static_cast<int64_t>(tensor.shape(axis)));
  view.data = tensor.data();
  view.bytes = tensor.nbytes();
  return view;
}

}  // namespace whit::python
