"""What a model's config.json says of its shape."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from . import _checks, _native

_FIELDS = ("architecture", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
           "tie_word_embeddings", "torch_dtype")


class PretrainedConfig:
    """The values of a model's config.json that shape its graph, read-only.

    architecture           "LlamaForCausalLM", …
    model_type             "llama", …
    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
    head_dim, vocab_size, max_position_embeddings        int
    rms_norm_eps, rope_theta                             float
    tie_word_embeddings                                  bool
    torch_dtype            of the stored weights; "" where the file does not say
    """

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    torch_dtype: str

    def __init__(self, native: _native.PretrainedConfig) -> None:
        if not isinstance(native, _native.PretrainedConfig):
            raise TypeError("a PretrainedConfig is read: from_json_file(path), from_dict(values), from_checkpoint(directory)")
        for name in _FIELDS:
            object.__setattr__(self, name, getattr(native, name))

    @classmethod
    def from_json_file(cls, config_file: str | os.PathLike[str]) -> PretrainedConfig:
        """Reads and checks a config.json.

        Raises NotFoundError, InvalidDataError, or UnsupportedError for a model that no graph can be
        built for, naming the key.
        """
        return cls(_native.PretrainedConfig.from_json_file(_checks.text("config_file", os.fspath(config_file))))

    @classmethod
    def from_checkpoint(cls, directory: str | os.PathLike[str]) -> PretrainedConfig:
        """Of a Hugging Face or engine directory."""
        return cls.from_json_file(os.path.join(directory, "config.json"))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> PretrainedConfig:
        """Of config.json's content as a dict, under Hugging Face's keys."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "config.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(dict(config), file)
            return cls.from_json_file(path)

    @property
    def dtype(self) -> str:
        """TensorRT-LLM's name of torch_dtype."""
        return self.torch_dtype

    @property
    def norm_epsilon(self) -> float:
        """TensorRT-LLM's name of rms_norm_eps."""
        return self.rms_norm_eps

    @property
    def head_size(self) -> int:
        """TensorRT-LLM's name of head_dim."""
        return self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        return {name: getattr(self, name) for name in _FIELDS}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"PretrainedConfig is read-only: it cannot change {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().values()))

    def __repr__(self) -> str:
        return f"PretrainedConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"
