"""Claims about the models, each measured by one command: ``python -m experiments NAME``.

Each experiment trains on the embedded data, evaluates all contenders with the same code, and writes
results/NAME.json and its tables as results/NAME.md. docs/experiments.md is generated from these.
"""

# In the order of the docs.
NAMES = (
    "bounds",
    "models",
    "hierarchy",
    "disentangle",
    "codebook",
    "few_labels",
    "anomaly",
    "inpaint",
)
