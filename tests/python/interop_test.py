"""Models that come from and go to other programs' formats."""
import json
import unittest

import numpy as np
import safetensors.numpy

import whit
from support import AWQ, QUICK, SMOOTHQUANT, ModelTest

GREEDY = whit.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPT = "Once upon a time"


def have_transformers():
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


class StateDicts(ModelTest):
    def setUp(self):
        self.tensors = safetensors.numpy.load_file(self.model / "model.safetensors")
        self.config = json.loads((self.model / "config.json").read_text())

    def load(self, tensors, **arguments):
        llm = whit.LLMEngine.from_state_dict(tensors, self.config, self.model, **QUICK | arguments)
        self.addCleanup(llm.shutdown)
        return llm

    def test_arrays_in_memory_answer_as_the_directory_does(self):
        np.testing.assert_array_equal(self.load(self.tensors).logits(PROMPT), self.engine().logits(PROMPT))

    def test_arrays_in_memory_quantize_to_the_same_engine(self):
        here, there = self.load(self.tensors, **AWQ), self.engine(**AWQ)
        self.assertNotEqual(here.path, there.path)
        self.assertEqual((here.path / "weights.safetensors").read_bytes(), (there.path / "weights.safetensors").read_bytes())

    def test_one_changed_value_is_another_model(self):
        first = self.load(self.tensors, **SMOOTHQUANT).path
        changed = dict(self.tensors)
        name = "model.layers.2.mlp.down_proj.weight"
        changed[name] = changed[name].copy()
        changed[name][17, 5] += 0.25
        self.assertNotEqual(self.load(changed, **SMOOTHQUANT).path, first)
        self.assertEqual(self.load(self.tensors, **SMOOTHQUANT).path, first)

    def test_float16_and_strided_arrays_are_read(self):
        half = {name: array.astype(np.float16) for name, array in self.tensors.items()}
        strided = {name: np.asfortranarray(array) for name, array in half.items()}
        full = {name: array.astype(np.float32) for name, array in half.items()}
        expected = self.load(full).logits(PROMPT)
        np.testing.assert_array_equal(self.load(half).logits(PROMPT), expected)
        np.testing.assert_array_equal(self.load(strided).logits(PROMPT), expected)

    def test_torch_tensors_are_read_in_place(self):
        try:
            import torch
        except ImportError:
            self.skipTest("torch is not installed")
        tensors = {name: torch.from_numpy(array).to(torch.bfloat16) for name, array in self.tensors.items()}
        rounded = {name: each.float().numpy() for name, each in tensors.items()}
        np.testing.assert_allclose(self.load(tensors).logits(PROMPT), self.load(rounded).logits(PROMPT), rtol=1e-3, atol=1e-2)

    def test_what_is_wrong_is_named(self):
        name = "model.layers.0.mlp.up_proj.weight"
        for words, change in {
            f"tensor {name} is missing": lambda tensors: tensors.pop(name),
            f"tensor {name} has shape": lambda tensors: tensors.update({name: tensors[name][:-1]}),
            f"tensor {name} is an array of int64": lambda tensors: tensors.update({name: tensors[name].astype(np.int64)}),
            f"tensor {name} is list": lambda tensors: tensors.update({name: [1.0]}),
            f"tensor {name} holds NaN|{name} .* holds nan": lambda tensors: tensors.update(
                {name: np.full_like(tensors[name], np.nan)}),
        }.items():
            tensors = dict(self.tensors)
            change(tensors)
            with self.subTest(words), self.assertRaisesRegex(Exception, words):
                self.load(tensors)


class Export(ModelTest):
    def test_an_exported_engine_computes_what_the_engine_computes(self):
        llm = self.engine(quant_mode=whit.QuantMode.AWQ)  # int4 weights, floating-point activations
        llm.export_hf(self.folder / "exported")
        exported = whit.LLMEngine.from_pretrained(self.folder / "exported")
        self.addCleanup(exported.shutdown)
        np.testing.assert_allclose(exported.logits(PROMPT), llm.logits(PROMPT), rtol=1e-3, atol=1e-3)
        self.assertEqual(exported.generate(PROMPT, GREEDY).outputs[0].token_ids, llm.generate(PROMPT, GREEDY).outputs[0].token_ids)
        names = set(safetensors.numpy.load_file(self.folder / "exported/model.safetensors"))
        self.assertEqual(names, set(safetensors.numpy.load_file(self.model / "model.safetensors")))

    def test_transformers_loads_an_export_and_computes_the_same_logits(self):
        if not have_transformers():
            self.skipTest("torch and transformers are not installed")
        import torch
        import transformers
        for name, arguments in {"plain": {}, "awq": {"quant_mode": whit.QuantMode.AWQ},
                                "rtn": {"quant_mode": whit.QuantMode.RTN}}.items():
            with self.subTest(name):
                llm = self.engine(**arguments)
                llm.export_hf(self.folder / f"to-transformers-{name}")
                model = transformers.AutoModelForCausalLM.from_pretrained(self.folder / f"to-transformers-{name}",
                                                                          dtype=torch.float32)
                ids = llm.encode(PROMPT)
                with torch.no_grad():
                    expected = model(torch.tensor([ids])).logits[0].numpy()
                np.testing.assert_allclose(llm.logits(ids), expected, rtol=2e-3, atol=2e-3)


if __name__ == "__main__":
    unittest.main()
