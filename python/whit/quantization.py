"""What a model is quantized to, and how: modes, algorithms, calibration."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from . import _checks, _native
from ._native import QuantMode
from .errors import UnsupportedError

__all__ = ["QuantMode", "QuantAlgo", "QuantConfig", "CalibConfig"]


class QuantAlgo(str, enum.Enum):
    """TensorRT-LLM's names of quantization algorithms; ``quant_mode`` and ``policy`` say what runs here."""

    W8A16 = "W8A16"
    W4A16 = "W4A16"
    W4A16_AWQ = "W4A16_AWQ"
    W4A8_AWQ = "W4A8_AWQ"
    W8A16_GPTQ = "W8A16_GPTQ"
    W4A16_GPTQ = "W4A16_GPTQ"
    W8A8_SQ_PER_CHANNEL = "W8A8_SQ_PER_CHANNEL"
    W8A8_SQ_PER_TENSOR_PLUGIN = "W8A8_SQ_PER_TENSOR_PLUGIN"
    W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
    W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN = "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN"
    W4A8_QSERVE_PER_GROUP = "W4A8_QSERVE_PER_GROUP"
    W4A8_QSERVE_PER_CHANNEL = "W4A8_QSERVE_PER_CHANNEL"
    FP8 = "FP8"
    FP8_PER_CHANNEL_PER_TOKEN = "FP8_PER_CHANNEL_PER_TOKEN"
    FP8_BLOCK_SCALES = "FP8_BLOCK_SCALES"
    INT8 = "INT8"
    MIXED_PRECISION = "MIXED_PRECISION"
    NVFP4 = "NVFP4"
    W4A8_MXFP4_FP8 = "W4A8_MXFP4_FP8"
    NO_QUANT = "NO_QUANT"


# Algorithm → mode, weight dtype, activation dtype. Activations of 8 bits are scaled per token, weights per channel or
# group: the SmoothQuant names that ask for exactly that, or for its plain form, are it.
_ALGORITHMS = {
    QuantAlgo.NO_QUANT: (QuantMode.NONE, "", ""),
    QuantAlgo.W8A16: (QuantMode.RTN, "int8", "float"),
    QuantAlgo.W4A16: (QuantMode.RTN, "int4", "float"),
    QuantAlgo.W4A16_AWQ: (QuantMode.AWQ, "int4", "float"),
    QuantAlgo.W4A8_AWQ: (QuantMode.AWQ, "int4", "int8"),
    QuantAlgo.W8A8_SQ_PER_CHANNEL: (QuantMode.SMOOTHQUANT, "int8", "int8"),
    QuantAlgo.W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN: (QuantMode.SMOOTHQUANT, "int8", "int8"),
    QuantAlgo.INT8: (QuantMode.RTN, "int8", "int8"),
    QuantAlgo.FP8_PER_CHANNEL_PER_TOKEN: (QuantMode.RTN, "fp8", "fp8"),
}


@dataclass
class QuantConfig:
    """What a model is quantized to; TensorRT-LLM's names and defaults.

    Raises, when made: TypeError, ValueError, or UnsupportedError listing the algorithms there are.
    """

    quant_algo: QuantAlgo | str | None = None
    """None: as the checkpoint stores it."""
    kv_cache_quant_algo: QuantAlgo | str | None = None
    group_size: int = 128
    """Inputs that share a scale, of int4 weights: 32, 64 or 128."""
    smoothquant_val: float = 0.5
    """Accepted at its default; the migration strength is searched for each layer."""
    clamp_val: Sequence[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    """Accepted for reading TensorRT-LLM's files; zero points are used wherever int4 weights gain by them."""
    pre_quant_scale: bool = False
    exclude_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _checks.only_default("QuantConfig", vars(self), {"kv_cache_quant_algo": None}, "keys and values are kept in 16 bits")
        _checks.only_default("QuantConfig", vars(self), {"smoothquant_val": 0.5}, "it is searched for each layer")
        _checks.only_default("QuantConfig", vars(self),
                             {"clamp_val": None, "use_meta_recipe": False, "exclude_modules": None},
                             "every linear of the decoder is quantized")
        _checks.integer("group_size", self.group_size, 1)
        for name in ("has_zero_point", "pre_quant_scale"):
            _checks.flag(name, getattr(self, name))
        if self.quant_algo is None:
            return
        try:
            self.quant_algo = QuantAlgo(self.quant_algo)
        except ValueError:
            known = ", ".join(each.value for each in _ALGORITHMS)
            raise ValueError(f"quant_algo is {self.quant_algo!r}; choose one of {known}") from None
        if self.quant_algo not in _ALGORITHMS:
            known = ", ".join(each.value for each in _ALGORITHMS)
            raise UnsupportedError(f"quant_algo {self.quant_algo.value} is not implemented; there are {known}")

    @property
    def quant_mode(self) -> QuantMode:
        """The algorithm: which numbers a weight is rounded to."""
        return _ALGORITHMS[QuantAlgo(self.quant_algo or QuantAlgo.NO_QUANT)][0]

    @property
    def policy(self) -> dict[str, str]:
        """The numerics: ``quant_policy`` of LLMEngine.from_pretrained."""
        _, weights, activations = _ALGORITHMS[QuantAlgo(self.quant_algo or QuantAlgo.NO_QUANT)]
        return {"weight_dtype": weights, "activation_dtype": activations} if weights else {}

    def is_module_excluded_from_quantization(self, name: str) -> bool:
        """Whether the linear of this Hugging Face module path keeps its weights: lm_head and tables follow ``head``."""
        return not name.startswith("model.layers.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if isinstance(self.quant_algo, QuantAlgo):
            values["quant_algo"] = self.quant_algo.value
        return values

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QuantConfig:
        """The inverse of to_dict; an unknown name raises TypeError."""
        _checks.refuse_unknown("QuantConfig", config, [each.name for each in fields(cls)])
        return cls(**config)


@dataclass
class CalibConfig:
    """What the algorithms see of a model at work; TensorRT-LLM's names.

    Calibration runs on the CPU. The default data set is text that the model writes itself, so that
    nothing has to be downloaded.
    """

    device: str = "cpu"
    calib_dataset: str = "self"
    """A text file, a .jsonl file with "text" members, or "self"."""
    calib_batches: int = 128
    """Samples are batches · batch size."""
    calib_batch_size: int = 1
    calib_max_seq_length: int = 512
    """Tokens of a sample."""
    random_seed: int = 1234
    tokenizer_max_seq_length: int = 2048

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}, expected 'cpu' or 'cuda'")
        _checks.only_default("CalibConfig", vars(self), {"device": "cpu"}, "this build calibrates on the CPU")
        _checks.text("calib_dataset", self.calib_dataset)
        for name in ("calib_batches", "calib_batch_size", "tokenizer_max_seq_length"):
            _checks.integer(name, getattr(self, name), 1, 2**31)
        _checks.integer("calib_max_seq_length", self.calib_max_seq_length, 2, 2**31)
        _checks.integer("random_seed", self.random_seed, 0, 2**64 - 1)

    @property
    def samples(self) -> int:
        """Sequences in all."""
        return self.calib_batches * self.calib_batch_size


def policy_of(quant_policy: Mapping[str, str] | None) -> _native.QuantPolicy:
    """``quant_policy`` as the engine takes it; unknown keys are refused by name."""
    policy = _native.QuantPolicy()
    if quant_policy is None:
        return policy
    if not isinstance(quant_policy, Mapping):
        raise TypeError(f"quant_policy is {quant_policy!r}, expected a dict with weight_dtype and activation_dtype")
    _checks.refuse_unknown("quant_policy", quant_policy, ["weight_dtype", "activation_dtype"])
    for name, value in quant_policy.items():
        setattr(policy, name, _checks.text(f"quant_policy[{name!r}]", value))
    return policy


def mode_of(quant_mode: Any) -> QuantMode:
    """``quant_mode`` as a QuantMode; its name is taken too."""
    if isinstance(quant_mode, QuantMode):
        return quant_mode
    names = [mode.name for mode in QuantMode]
    if isinstance(quant_mode, str) and quant_mode.upper() in names:
        return QuantMode[quant_mode.upper()]
    raise TypeError(f"quant_mode is {quant_mode!r}, expected one of {', '.join('QuantMode.' + name for name in names)}")
