"""Whit quantizes large language models and runs them.

>>> import whit
>>> engine = whit.LLMEngine.from_pretrained(
...     "SmolLM2-135M-Instruct", quant_mode=whit.QuantMode.AWQ,
...     quant_policy={"weight_dtype": "int4", "activation_dtype": "int8"})
>>> engine.generate("The capital of France is", whit.SamplingParams(max_tokens=16)).outputs[0].text

LLMEngine is the engine by modes and policies, LLM the same with TensorRT-LLM's arguments.
whit.statistics and whit.plots look into what quantization did.
"""

from . import errors, models, quantization, statistics
from ._native import version as __version__
from .config import BuildConfig, KvCacheConfig
from .engine import LLMEngine
from .errors import WhitError
from .llm import LLM
from .models import PretrainedConfig
from .outputs import CompletionOutput, Logprob, RequestOutput
from .quantization import CalibConfig, QuantAlgo, QuantConfig, QuantMode
from .sampling import SamplingParams

__all__ = [
    "LLM",
    "LLMEngine",
    "SamplingParams",
    "RequestOutput",
    "CompletionOutput",
    "Logprob",
    "QuantMode",
    "QuantAlgo",
    "QuantConfig",
    "CalibConfig",
    "BuildConfig",
    "KvCacheConfig",
    "PretrainedConfig",
    "WhitError",
    "errors",
    "models",
    "quantization",
    "statistics",
    "__version__",
]
