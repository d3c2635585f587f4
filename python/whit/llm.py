"""LLM: TensorRT-LLM's entry point over the same engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _checks, _native
from .config import BuildConfig, KvCacheConfig, native_config
from .engine import LLMEngine
from .errors import UnsupportedError
from .progress import ProgressCallback, callback_of
from .quantization import CalibConfig, QuantConfig, policy_of

# Names of TensorRT-LLM's LLM that are taken at the value at which they ask for nothing.
_ONE_VALUE = {
    "tokenizer_mode": "auto", "skip_tokenizer_init": False, "trust_remote_code": False, "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1, "revision": None, "tokenizer_revision": None, "scheduler_config": None,
    "guided_decoding_backend": None, "speculative_config": None, "enable_lora": False, "max_beam_width": 1,
    "enable_chunked_prefill": False,
}


class LLM(LLMEngine):
    """A model that answers, made with TensorRT-LLM's arguments.

    model            a Hugging Face directory, a .gguf file or an engine directory
    tokenizer        accepted where it is the model's own; None
    dtype            "auto": products in float32 from weights as they are stored
    quant_config     what to quantize to; None: as the model is stored
    calib_config     what the quantization sees of the model at work
    kv_cache_config  its max_tokens limits the context
    build_config     where the engine is kept, threads, instruction set
    max_seq_len      the longest context in tokens; None: the model's
    max_batch_size   at most so many answers run together; more than build_config.max_batch_size
                     (32 where it is None) only where that says so too
    max_num_tokens   accepted and not needed: prompts are read in parts
    progress         True draws a bar, False nothing; or progress(title, done, total, detail, ended)

    Raises what LLMEngine.from_pretrained raises; TypeError for an unknown name, UnsupportedError
    for one that is known but asks for something that is not there.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "auto",
        quant_config: QuantConfig | Mapping[str, Any] | None = None,
        calib_config: CalibConfig | None = None,
        kv_cache_config: KvCacheConfig | None = None,
        build_config: BuildConfig | None = None,
        max_batch_size: int = 2048,
        max_num_tokens: int = 8192,
        max_seq_len: int | None = None,
        progress: bool | ProgressCallback = True,
        **kwargs: Any,
    ) -> None:
        _checks.refuse_unknown("LLM", kwargs, [*_ONE_VALUE, *LLM.__init__.__annotations__.keys() - {"kwargs", "return"}])
        _checks.only_default("LLM", {**_ONE_VALUE, **kwargs}, _ONE_VALUE, "this build runs one model on one machine's CPU")
        path = _checks.text("model", os.fspath(model))
        if tokenizer is not None and os.path.realpath(os.fspath(tokenizer)) != os.path.realpath(path):
            raise UnsupportedError(f"tokenizer={os.fspath(tokenizer)!r} is not supported: the model's own tokenizer is used")
        if dtype not in ("auto", "float32"):
            raise UnsupportedError(f"dtype={dtype!r} is not supported: products are computed in float32; leave it at 'auto'")
        _checks.integer("max_num_tokens", max_num_tokens, 1)
        quant = _instance("quant_config", quant_config, QuantConfig)
        calib = _instance("calib_config", calib_config, CalibConfig)
        cache = _instance("kv_cache_config", kv_cache_config, KvCacheConfig)
        build = _instance("build_config", build_config, BuildConfig)
        calib.__post_init__()
        native = native_config(build, calib=calib.calib_dataset, calib_samples=calib.samples,
                               calib_length=calib.calib_max_seq_length, seed=calib.random_seed, group_size=quant.group_size)
        limits = [_checks.integer("max_seq_len", each, 1) for each in (max_seq_len, build.max_seq_len, cache.max_tokens)
                  if each is not None]
        native.max_model_len = min(limits, default=0)
        native.max_batch_size = min(native.max_batch_size, _checks.integer("max_batch_size", max_batch_size, 1))
        native.prefix_caching = cache.enable_block_reuse
        if cache.dtype != "auto":
            native.kv_cache_dtype = cache.dtype
        super().__init__(_native.Engine.from_pretrained(path, quant.quant_mode, policy_of(quant.policy), native,
                                                        callback_of(progress)))

    @classmethod
    def from_pretrained(cls, model_dir: Any, **kwargs: Any) -> Any:
        """LLMEngine.from_pretrained makes an LLMEngine; an LLM is made by LLM(model, …)."""
        raise TypeError("LLM(model, quant_config=…) makes an LLM; LLMEngine.from_pretrained(model_dir, …) an LLMEngine")

    @classmethod
    def from_state_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """LLMEngine.from_state_dict makes an LLMEngine."""
        raise TypeError("LLMEngine.from_state_dict(…) makes an LLMEngine")


def _instance(name: str, value: Any, kind: type[Any]) -> Any:
    if value is None:
        return kind()
    if kind is QuantConfig and isinstance(value, Mapping):
        return QuantConfig.from_dict(value)
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, expected a whit.{kind.__name__}")
    return value
