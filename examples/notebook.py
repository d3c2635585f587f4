# %% [markdown]
# # What quantization does to a model
#
# A notebook as a script: every `# %%` is a cell (Jupyter through jupytext, VS Code, Spyder). It quantizes a model twice,
# compares both engines with the original, and looks into the layers.
#
#     python examples/notebook.py MODEL_DIR

# %%
import argparse
import os

import numpy as np

import whit
from whit import plots, statistics

parser = argparse.ArgumentParser(description="What quantization does to a model")
parser.add_argument("model", help="a Hugging Face directory or a .gguf file")
parser.add_argument("--samples", type=int, default=32)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--group-size", type=int, default=128)
parser.add_argument("--plots", default=".", help="where pictures are written, if matplotlib is installed")
options = parser.parse_args()

# %% [markdown]
# ## The original and two engines
# The first run calibrates and builds; later ones load from the cache.

# %%
calibration = {"calib_samples": options.samples, "calib_length": options.length, "group_size": options.group_size}
engines = {
    "original": whit.LLMEngine.from_pretrained(options.model),
    "awq": whit.LLMEngine.from_pretrained(options.model, quant_mode=whit.QuantMode.AWQ, **calibration,
                                          quant_policy={"weight_dtype": "int4", "activation_dtype": "int8"}),
    "smoothquant": whit.LLMEngine.from_pretrained(options.model, quant_mode=whit.QuantMode.SMOOTHQUANT, **calibration,
                                                  quant_policy={"weight_dtype": "int8", "activation_dtype": "int8"}),
}

# %%
prompt = "The capital of France is"
for name, engine in engines.items():
    answer = engine.generate(prompt, whit.SamplingParams(max_tokens=12))
    print(f"{name:12} {engine.info['bits_per_weight']:5.2f} bits per weight: {answer.outputs[0].text!r}")

# %% [markdown]
# ## How far the logits move
# KL divergence of the next-token distributions, averaged over the positions of a text.

# %%
def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


text = "Water boils at a lower temperature on a mountain, because the air presses less on its surface."
reference = log_softmax(engines["original"].logits(text))
points = []
for name, engine in engines.items():
    candidate = log_softmax(engine.logits(text))
    divergence = float((np.exp(reference) * (reference - candidate)).sum(axis=-1).mean())
    points.append((name, engine.info["bits_per_weight"], divergence))
    print(f"{name:12} KL divergence {divergence:.5f} nats")

# %% [markdown]
# ## Which groups of linears lose most
# `report.to_dict()` is ready for `pandas.DataFrame`.

# %%
report = engines["awq"].quantization_report()
errors = report.array("error")
for index in np.argsort(-errors)[:5]:
    group = report.groups[index]
    print(f"{group['name']}: {group['error']:.2e} of the output's energy, plain rounding {group['rtn_error']:.2e}")

# %% [markdown]
# ## Outlier channels before and after SmoothQuant

# %%
linear = "model.layers.1.mlp.gate_proj"
before, after = (statistics.activation_statistics(engines[name], [text], [linear])[linear] for name in ("original", "smoothquant"))
for name, each in (("before", before), ("after", after)):
    print(f"{linear} {name}: the largest channel is {each['max_abs'].max() / np.median(each['max_abs']):.1f} times the median one")

# %%
hidden = engines["original"].hidden_states(text)
norms = [float(np.linalg.norm(states, axis=1).mean()) for states in hidden.values()]
print("mean norm of the hidden states, layer by layer:", " ".join(f"{norm:.1f}" for norm in norms))

# %% [markdown]
# ## Pictures

# %%
try:
    plots.plot_errors(report).figure.savefig(os.path.join(options.plots, "errors.png"))
    plots.plot_outliers(before, after, title=linear).figure.savefig(os.path.join(options.plots, "outliers.png"))
    plots.plot_pareto(points, loss_label="KL divergence in nats").figure.savefig(os.path.join(options.plots, "pareto.png"))
except whit.errors.UnsupportedError as error:
    print(error)

# %%
for engine in engines.values():
    engine.shutdown()
