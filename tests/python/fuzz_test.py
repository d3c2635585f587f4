"""No argument crashes the interpreter: whatever is given, a call returns or raises an Exception."""
import unittest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whit
from support import ModelTest
from whit import _native

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(max_size=20)
    | st.sampled_from([2**31, 2**63, 2**64, -2**63, 1e308, "\ud800", "\0", "int4", "int8", "awq", whit.QuantMode.RTN]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    | st.tuples(inner, inner), max_leaves=6)
FIELDS = sorted(whit.SamplingParams.__dataclass_fields__)
plausible = st.integers(-5, 300) | st.floats(-3, 3) | st.lists(st.integers(-2, 400), max_size=5)
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def may_raise(call, *arguments, **named):
    """The call's result, or None where it raised what a caller can catch."""
    try:
        return call(*arguments, **named)
    except Exception:  # any is allowed: the interpreter lives
        return None


class Fuzz(ModelTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.llm = whit.LLMEngine.from_pretrained(cls.model, progress=False)
        cls.addClassCleanup(cls.llm.shutdown)

    @quick
    @given(st.dictionaries(st.sampled_from(FIELDS), anything | plausible, max_size=5), anything | st.just("Once"))
    def test_sampling_params_and_prompts(self, fields, prompt):
        params = may_raise(whit.SamplingParams, **fields)
        if params is not None and params.max_tokens <= 64 and params.n <= 4:
            request = may_raise(self.llm.generate, prompt, params, use_tqdm=False)
            for each in request if isinstance(request, list) else [request] if request else []:
                for output in each.outputs:
                    self.assertLessEqual(len(output.token_ids) - len(each.prompt_token_ids), params.max_tokens)

    @quick
    @given(st.sampled_from(FIELDS), anything | plausible)
    def test_fields_set_behind_the_checks(self, field, value):
        params = whit.SamplingParams(max_tokens=2)
        setattr(params, field, value)
        if isinstance(params.max_tokens, int) and isinstance(params.n, int) and params.n < 5 and params.max_tokens < 65:
            may_raise(self.llm.generate, "x", params)

    @quick
    @given(st.sampled_from(["from_pretrained", "LLM", "QuantConfig", "CalibConfig", "BuildConfig", "KvCacheConfig"]), st.data())
    def test_configurations(self, name, data):
        known = {"from_pretrained": ["quant_mode", "quant_policy", "build_config", "calib", "group_size", "seed", "progress"],
                 "LLM": ["quant_config", "calib_config", "kv_cache_config", "max_seq_len", "dtype", "tensor_parallel_size"]}
        fields = known.get(name) or sorted(getattr(whit, name).__dataclass_fields__)
        arguments = data.draw(st.dictionaries(st.sampled_from(fields), anything, max_size=3))
        if name == "from_pretrained":
            model = data.draw(anything)
            arguments = {"calib_samples": 1, "calib_length": 2} | arguments
            engine = may_raise(whit.LLMEngine.from_pretrained, model, **arguments)
        elif name == "LLM":
            engine = may_raise(whit.LLM, data.draw(anything), **arguments)
        else:
            engine = None
            may_raise(getattr(whit, name), **arguments)
        if engine is not None:
            engine.shutdown()

    @quick
    @given(st.sampled_from(["encode", "decode", "logits", "hidden_states", "weight", "apply_chat_template", "get_stats", "chat"]),
           st.lists(anything, max_size=3))
    def test_methods(self, name, arguments):
        may_raise(getattr(self.llm, name), *arguments)

    @quick
    @given(st.sampled_from([each for each in dir(_native.Engine) if not each.startswith("__")]), st.lists(anything, max_size=4))
    def test_the_native_module_itself(self, name, arguments):
        if name in ("save", "export_hf"):  # these write where they are told to
            return
        may_raise(getattr(_native.Engine, name), *arguments)
        native = self.llm._native_engine
        if callable(getattr(native, name)) and name not in ("from_pretrained", "from_state_dict"):
            may_raise(getattr(native, name), *arguments)

    @quick
    @given(st.dictionaries(st.text(max_size=30) | st.just("model.norm.weight"), anything, max_size=3), anything, anything)
    def test_state_dicts(self, tensors, config, tokenizer):
        may_raise(whit.LLMEngine.from_state_dict, tensors, config, tokenizer)
        may_raise(whit.LLMEngine.from_state_dict, tensors, {"architectures": ["LlamaForCausalLM"]}, self.model)


if __name__ == "__main__":
    unittest.main()
