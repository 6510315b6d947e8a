"""What the models are said to do, measured again by one command: ``python -m experiments NAME``.

Each experiment trains on the embedded data, judges every contender by one evaluator, and writes
results/NAME.json with its tables as results/NAME.md. docs/experiments.md is made from those.
"""

# In the order of the docs.
NAMES = ("bounds", "hierarchy", "disentangle", "few_labels", "anomaly", "inpaint")
