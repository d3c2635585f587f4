"""LLMEngine: from a model's directory to answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import _checks, _native
from ._worker import Worker
from .config import BuildConfig, native_config
from .models import PretrainedConfig
from .outputs import RequestOutput
from .progress import ProgressCallback, callback_of
from .quantization import QuantMode, mode_of, policy_of
from .sampling import SamplingParams
from .statistics import QuantizationReport

if TYPE_CHECKING:
    import numpy

    FloatArray = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

Prompt = str | Sequence[int]
"""A text, or token ids."""
Messages = Sequence[Mapping[str, str]]
"""A conversation: [{"role": "user", "content": "…"}, …]."""


class LLMEngine:
    """A model that answers.

    Made by from_pretrained or from_state_dict. May be used by several threads and asyncio tasks;
    their requests run together (in-flight batching), and each answers as it would alone. A context
    manager: leaving it ends what runs and frees the model.
    """

    def __init__(self, native: _native.Engine, keep: object = None) -> None:
        if not isinstance(native, _native.Engine):
            raise TypeError("an LLMEngine is made by LLMEngine.from_pretrained(model_dir, …)")
        self._engine: _native.Engine | None = native
        self._worker = Worker(native)
        self._keep = keep  # tensors that the native engine reads in place

    @classmethod
    def from_pretrained(
        cls,
        model_dir: str | os.PathLike[str],
        *,
        quant_mode: QuantMode = QuantMode.NONE,
        quant_policy: Mapping[str, str] | None = None,
        build_config: BuildConfig | None = None,
        calib: str | os.PathLike[str] = "self",
        calib_samples: int = 128,
        calib_length: int = 512,
        seed: int = 0,
        group_size: int = 128,
        progress: bool | ProgressCallback = True,
    ) -> Self:
        """Calibrates, quantizes and builds what is missing, and loads the engine.

        model_dir      a Hugging Face directory, a .gguf file, or an engine directory (which runs as
                       it is; a mode or policy that contradicts it is an error)
        quant_mode     the algorithm; NONE runs the weights as they are stored
        quant_policy   the numerics: {"weight_dtype": "int4" | "int8" | "fp8" | "float",
                       "activation_dtype": "int8" | "fp8" | "float"}; what is left out is the mode's usual
        calib          a text file, or "self": text that the model writes itself
        calib_samples  sequences, of calib_length tokens each
        group_size     inputs that share a scale, of int4 weights: 32, 64 or 128
        progress       True draws a bar, False nothing; or progress(title, done, total, detail, ended)

        An engine built before for the same model and settings is loaded from
        build_config.engine_dir or the cache. Ctrl-C ends the work and leaves nothing behind.

        Raises NotFoundError, InvalidDataError (a damaged model), UnsupportedError (a model, or a
        mode and policy, that cannot be run), InvalidArgumentError, IoError, ResourceError; TypeError
        for unknown names.
        """
        native = _native.Engine.from_pretrained(
            _checks.text("model_dir", os.fspath(model_dir)), mode_of(quant_mode), policy_of(quant_policy),
            native_config(BuildConfig() if build_config is None else build_config, calib=calib,
                          calib_samples=calib_samples, calib_length=calib_length, seed=seed, group_size=group_size),
            callback_of(progress))
        return cls(native)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        config: Mapping[str, Any],
        tokenizer: str | os.PathLike[str],
        *,
        quant_mode: QuantMode = QuantMode.NONE,
        quant_policy: Mapping[str, str] | None = None,
        build_config: BuildConfig | None = None,
        calib: str | os.PathLike[str] = "self",
        calib_samples: int = 128,
        calib_length: int = 512,
        seed: int = 0,
        group_size: int = 128,
        progress: bool | ProgressCallback = True,
    ) -> Self:
        """The same for a model in memory: only the engine is written to disk.

        state_dict     tensors by Hugging Face name: torch tensors or numpy arrays of float32,
                       float16 or bfloat16 (ml_dtypes'), copied where not contiguous; not changed. With
                       QuantMode.NONE they are read in place and kept.
        config         config.json's content (model.config.to_dict())
        tokenizer      a directory with tokenizer.json and, where there are, tokenizer_config.json
                       and generation_config.json
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is {type(state_dict).__name__}, expected a mapping of names to tensors")
        if not isinstance(config, Mapping):
            raise TypeError(f"config is {type(config).__name__}, expected a mapping (model.config.to_dict())")
        folder = Path(os.fspath(tokenizer))
        tensors = [(_checks.text("a tensor's name", name), *_tensor(name, value)) for name, value in state_dict.items()]
        native = _native.Engine.from_state_dict(
            tensors, json.dumps(dict(config)), (folder / "tokenizer.json").read_text("utf-8"),
            _text_or_empty(folder / "tokenizer_config.json"), _text_or_empty(folder / "generation_config.json"),
            mode_of(quant_mode), policy_of(quant_policy),
            native_config(BuildConfig() if build_config is None else build_config, calib=calib,
                          calib_samples=calib_samples, calib_length=calib_length, seed=seed, group_size=group_size),
            callback_of(progress))
        return cls(native, keep=tensors)

    @property
    def _native_engine(self) -> _native.Engine:
        if self._engine is None:
            raise RuntimeError("the engine has been shut down")
        return self._engine

    # Requests

    def generate(
        self,
        inputs: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> RequestOutput | list[RequestOutput]:
        """Continues one prompt (→ RequestOutput) or a list of them (→ a list in the same order).

        inputs           a text, token ids, or a list of these; texts are taken as they are
        sampling_params  one for all, or one for each
        use_tqdm         draws a bar over several prompts where stderr shows one

        Ctrl-C cancels all of them and raises KeyboardInterrupt.
        """
        single = isinstance(inputs, str) or _is_ids(inputs)
        prompts: list[Prompt] = [inputs] if single else list(inputs)  # type: ignore[list-item, arg-type]
        params = _params_of(sampling_params, len(prompts))
        requests = []
        bar = callback_of(use_tqdm if isinstance(use_tqdm, bool) else bool(use_tqdm))
        try:
            for prompt, each in zip(prompts, params, strict=True):
                requests.append(self.generate_async(prompt, each))
            for done, request in enumerate(requests):
                if bar is not None and len(requests) > 1:
                    bar("generating", done, len(requests), "", False)
                request.result()
        except BaseException:
            for request in requests:
                request.abort()
            for request in requests:
                with request._condition:
                    request._condition.wait_for(lambda request=request: request._done)  # type: ignore[misc]
            raise
        finally:
            if bar is not None and len(requests) > 1:
                bar("generating", sum(request.finished for request in requests), len(requests), "", True)
        return requests[0] if single else requests

    def generate_async(self, inputs: Prompt, sampling_params: SamplingParams | None = None,
                       streaming: bool = False) -> RequestOutput:
        """Starts one request and returns at once; it runs together with those that are running.

        ``await`` the result, or iterate over it (``async for``, ``for``) for every new token;
        ``streaming`` is accepted for TensorRT-LLM's sake and changes nothing. A request that cannot
        be served raises here.
        """
        _checks.flag("streaming", streaming)
        params = _params_of(sampling_params, 1)[0]
        engine = self._native_engine
        if isinstance(inputs, str):
            ids = engine.encode(_checks.text("inputs", inputs), params.add_special_tokens)
            prompt: str | None = inputs
        else:
            ids, prompt = _checks.token_ids("inputs", inputs), None
        if params.truncate_prompt_tokens is not None:
            ids = ids[-int(params.truncate_prompt_tokens):]
        return self._worker.submit(prompt, ids, params)

    def chat(self, messages: Messages | str, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Answers a conversation (or a user's one message) through the model's chat template."""
        ids = self.apply_chat_template(messages)
        request = self._worker.submit(self.decode(ids, skip_special_tokens=False), ids, _params_of(sampling_params, 1)[0])
        try:
            return request.result()
        except BaseException:
            request.abort()
            raise

    # Text and tokens

    def apply_chat_template(self, messages: Messages | str) -> list[int]:
        """The tokens of a conversation followed by the opening of the assistant's turn.

        Nothing in a message becomes a control token. UnsupportedError where the model has no template.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        turns = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise TypeError(f"messages[{i}] is {message!r}, expected a dict with role and content")
            _checks.refuse_unknown(f"messages[{i}]", message, ["role", "content"])
            if "role" not in message or "content" not in message:
                raise TypeError(f"messages[{i}] needs both role and content")
            turns.append((_checks.text(f"messages[{i}].role", message["role"]),
                          _checks.text(f"messages[{i}].content", message["content"])))
        return self._native_engine.chat_prompt(turns)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The text's token ids, as Hugging Face's tokenizers give them."""
        return self._native_engine.encode(_checks.text("text", text), _checks.flag("add_special_tokens", add_special_tokens))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The tokens' text; ids that are not in the vocabulary add nothing."""
        return self._native_engine.decode(_checks.token_ids("token_ids", token_ids),
                                          _checks.flag("skip_special_tokens", skip_special_tokens))

    # Analysis

    def logits(self, prompt: Prompt) -> FloatArray:
        """float32 [tokens, V]: of every position of a prompt, from an empty context."""
        return self._native_engine.logits(self._ids(prompt))

    def hidden_states(self, prompt: Prompt, taps: str | Sequence[str] | None = None) -> dict[str, FloatArray]:
        """float32 [tokens, width] by tap, while the model reads a prompt from an empty context.

        taps   names of tap_names(); None: model.embed_tokens.output, every model.layers.<i>.output
               and model.norm.output. <linear>.input is what a linear reads, before an int8
               activation scheme rounds it.
        """
        engine = self._native_engine
        if taps is None:
            taps = [name for name in engine.tap_names() if name.endswith(".output")]
        elif isinstance(taps, str):
            taps = [taps]
        return engine.taps(self._ids(prompt), [_checks.text(f"taps[{i}]", name) for i, name in enumerate(taps)])

    def tap_names(self) -> list[str]:
        """What hidden_states can show, in the order of computation."""
        return self._native_engine.tap_names()

    def weight(self, module: str) -> FloatArray:
        """float32 [N, K]: a linear's weight (or model.embed_tokens'), dequantized, by module path."""
        return self._native_engine.weight(_checks.text("module", module))

    def weight_names(self) -> list[str]:
        """Module paths that weight() takes."""
        return self._native_engine.weight_names()

    def quantization_report(self) -> QuantizationReport:
        """What was chosen for each group of linears, with its loss; UnsupportedError for an unquantized model."""
        return QuantizationReport.of_engine(self.path)

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """A record for each answer since the last call, oldest first (the last 1024 are kept).

        Waits up to ``timeout`` seconds for one while requests are running. Keys: requestId,
        promptTokens, reusedTokens, generatedTokens, batchSize (answers that one of its steps
        computed together, at most), queueSeconds, prefillSeconds, decodeSeconds, latencySeconds (of
        all three and the way to Python), prefillTokensPerSecond, decodeTokensPerSecond,
        numQueuedRequests (answers that waited when this one ended).
        """
        if timeout is not None and not _checks.real("timeout", timeout) >= 0:
            raise ValueError(f"timeout is {timeout}, expected seconds ≥ 0")
        return self._worker.stats(None if timeout is None else min(float(timeout), 1e6))

    # Files

    def save(self, engine_dir: str | os.PathLike[str]) -> None:
        """Copies the engine to a directory, which appears whole or not at all.

        An engine that is there is replaced, anything else refused. UnsupportedError where the model
        runs unquantized: there is no engine then.
        """
        self._native_engine.save(_checks.text("engine_dir", os.fspath(engine_dir)))

    def export_hf(self, directory: str | os.PathLike[str], dtype: str = "auto", format: str = "dequantized") -> None:
        """Writes a Hugging Face directory that other programs load.

        format  "dequantized": floating-point weights, for every program; "compressed-tensors": the engine's own codes,
                for vLLM and transformers; "awq": the same in AutoAWQ's "gemm" layout, of int4 weights
        dtype   of what is not quantized: "float32", "float16", "bfloat16", or "auto" for what the format asks for
                (float32 where weights are dequantized, float16 beside quantized ones)
        UnsupportedError where the format cannot express a linear's weight.
        """
        self._native_engine.export_hf(_checks.text("directory", os.fspath(directory)), _checks.text("dtype", dtype),
                                      _checks.text("format", format))

    @property
    def path(self) -> Path:
        """The directory or file that runs: the model itself, or the engine that was built from it."""
        return Path(self._native_engine.path)

    @property
    def config(self) -> PretrainedConfig:
        """The model's shape."""
        return PretrainedConfig(self._native_engine.config)

    @property
    def info(self) -> dict[str, Any]:
        """How it runs: description, isa, backend, threads, max_model_len, parameters, weight_bytes, bits_per_weight, load_s."""
        native = self._native_engine.info
        names = ("description", "isa", "backend", "threads", "max_model_len", "parameters", "weight_bytes", "bits_per_weight", "load_s")
        return {name: getattr(native, name) for name in names}

    # Life

    def shutdown(self) -> None:
        """Ends what runs, refuses what waits (RequestCancelled) and frees the model; may be called again."""
        self._worker.shutdown()
        if self._engine is not None:
            self._worker.engine = None  # type: ignore[assignment]
            self._engine = None
            self._keep = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._engine.info.description if self._engine else 'shut down'}>"

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.encode(prompt) if isinstance(prompt, str) else _checks.token_ids("prompt", prompt)


def _is_ids(inputs: Any) -> bool:
    """Whether this is one prompt of token ids; arrays of any library included."""
    if hasattr(inputs, "ndim"):
        return inputs.ndim == 1
    return isinstance(inputs, Sequence) and len(inputs) > 0 and all(hasattr(each, "__index__") for each in inputs)


def _params_of(params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(each, SamplingParams) for each in params):
        raise TypeError(f"sampling_params is {params!r}, expected a whit.SamplingParams or a list of them")
    if len(params) != count:
        raise ValueError(f"{len(params)} sampling_params were given for {count} prompts; give one, or one for each")
    return list(params)


def _tensor(name: str, value: Any) -> tuple[Any, str]:
    """A contiguous CPU tensor that speaks DLPack, and its dtype where it cannot say that itself."""
    if hasattr(value, "detach"):  # torch
        return value.detach().cpu().contiguous(), ""
    import numpy as np

    if not isinstance(value, np.ndarray):
        raise TypeError(f"tensor {name} is {type(value).__name__}, expected a torch tensor or a numpy array")
    if value.dtype.name == "bfloat16":  # of ml_dtypes
        return np.ascontiguousarray(value).view(np.uint16), "BF16"
    if value.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"tensor {name} is an array of {value.dtype}, expected float16, bfloat16, float32 or float64")
    return np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")), ""


def _text_or_empty(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""
