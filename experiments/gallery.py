"""The gallery: examples trained, drawn and measured."""

from __future__ import annotations

import json
import time
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from experiments import gallery_parts, showpieces
from experiments.training import Clock, parameters, train
from vae_fast import data as datasets
from vae_fast import evaluate
from vae_fast.evaluate.run import gather
from vae_fast.train.config import from_dict

ROOT = Path(__file__).parents[1]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
NLL_SAMPLES, TEST_SAMPLES = 50, 500
# The order of the models' table; other examples follow by name.
ORDER = ("ae", "fashion", "beta_vae", "cvae", "inpainting_cvae", "aae", "vrae", "vrae_series", "hvae",
         "vdvae", "iwae", "ssvae", "autoencoder_kl")  # fmt: skip
LEFT_OUT = {
    "careful": "the options of a safe run, on the VAE",
    "augmented": "an option of the data, on the VAE",
    "binarized": "an option of the data, on the VAE",
    "autoencoder_kl_22m": "for a GPU",
    "autoencoder_kl_84m": "for several GPUs",
    "latent_diffusion_gpu": "for a GPU",
    "latent_diffusion_8gpu": "for several GPUs",
    "text": "its data are made first, and it draws words and no pictures",
}
# Where an example would take an hour of a busy core: what the gallery trains instead.
SHORTER: dict[str, dict[str, Any]] = {
    "beta_tcvae": {"epochs": 4},
    "latent_diffusion": {
        "epochs": 1,
        "model_args.channels": 8,
        "model_args.objective_options.channels": 8,
        "model_args.objective_options.start": 80,
    },
    "vae_gan": {
        "epochs": 2,
        "batch_size": 32,
        "model_args.network_options.channels": [16, 32],
        "model_args.objective_options.channels": 8,
    },
    "vq_vae": {"epochs": 1, "batch_size": 32, "model_args.network_options.channels": 4},
}
ANSWERS = {
    "elbo": "ELBO {:.1f}",
    "nll": "NLL {:.1f} (K = 50)",
    "kl": "KL {:.1f}",
    "reconstruction_mse": "squared error per pixel {:.4f}",
    "active_units": "{} active units",
    "accuracy": "accuracy {:.1%}",
}

HEAD = """\
# Gallery

Most examples of `examples/`, trained, drawn and measured by `python -m experiments gallery`;
`--only NAME` makes one again. `LEFT_OUT` in `experiments/gallery.py` has those that are not for this
page, with the reasons. A table at the end has all models and parts, trained with one small budget;
`--only parts` makes its missing rows, `--only part-NAME` one. "Not made yet" names what is missing, of
the examples and of the table.

Each caption has the command, and the date and commit of its training. Flags behind the file's name
(`SHORTER` in `experiments/gallery.py`) make a training shorter or its networks smaller than the
example's own, so that no picture takes more than some minutes of one core. For the samples of
`vae_gan` that is too short. Two examples of 2026-11-22 would be trained otherwise today. `beta_vae` has
transposed convolutions, the default at that time; today this takes
`network_options: {upsampling: transposed}`. `autoencoder_kl` was trained in bfloat16
(`precision: bf16`); its file says float32 today.

Numbers are in nats per sample where nothing else is said. Grey images under a Bernoulli likelihood
give a customary cross-entropy and no log-likelihood, and densities are not to be compared with
probabilities: compare numbers of one likelihood on one data set only.
"""


def main(quick: bool = False, out: Path | None = None, only: list[str] | None = None) -> int:
    """Train, draw and measure, then write gallery.md. Finished examples are kept if this is
    interrupted.

    Args:
        quick: an epoch on a few images, to see that it runs.
        out: instead of docs/.
        only: the examples to train again, "part-NAME" for a row of the table, "parts" for its
            missing rows; all examples and missing rows if None.
    """
    docs = out or DOCS
    folder = docs / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    facts_file, clock = folder / "gallery.json", Clock()
    parts = [name for name in only or ["parts"] if name == "parts" or name.startswith("part-")]
    examples = None if only is None else [name for name in only if name not in parts]
    for name in names(examples):
        clock.say(f"examples/{name}.yaml")
        found = show(name, folder, quick)
        clock.say(caption(found))
        # Read anew: another process may have made another example meanwhile.
        facts = {**made(facts_file), name: found}
        facts_file.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    gallery_parts.make(folder, parts, quick, clock)
    facts = made(facts_file)
    ordered = {name: facts[name] for name in names(None) if name in facts}
    text = page(ordered) + "\n" + gallery_parts.table(gallery_parts.made(folder))
    (docs / "gallery.md").write_text(text)
    print(docs / "gallery.md")
    return 0


def made(file: Path) -> dict[str, Any]:
    """The facts of the examples trained so far."""
    return json.loads(file.read_text()) if file.is_file() else {}


def names(only: list[str] | None) -> list[str]:
    """The names of the gallery's examples in order; ValueError for an unknown one."""
    found = [path.stem for path in EXAMPLES.glob("*.yaml") if path.stem not in LEFT_OUT]
    unknown = set(only or ()) - set(found)
    if unknown:
        raise ValueError(f"examples has no {sorted(unknown)}; it has {sorted(found)}")
    place = {name: i for i, name in enumerate(ORDER)}
    found.sort(key=lambda name: (place.get(name, len(place)), name))
    return found if only is None else [name for name in found if name in only]


def read(name: str) -> dict[str, Any]:
    """An example's configuration, and its first comment as ``words``."""
    import yaml

    text = (EXAMPLES / f"{name}.yaml").read_text()
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return {**yaml.safe_load(text), "words": " ".join(comment)}


def shortened(name: str) -> dict[str, Any]:
    """``read``, with the values of ``SHORTER``."""
    config = read(name)
    for key, value in SHORTER.get(name, {}).items():
        *outer, last = key.split(".")
        reduce(lambda inner, part: inner.setdefault(part, {}), outer, config)[last] = value
    return config


def show(name: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Train one example, draw it into ``folder`` and measure it."""
    config = shortened(name)
    words = config.pop("words")
    given: tuple[Any, ...] = ()
    if quick:
        config.update(epochs=1, batch_size=16)
        splits = (datasets.load(config["data"], split=s) for s in ("train", "val"))
        given = tuple(split.slice(0, 64) for split in splits)
    began, cpu = time.perf_counter(), time.process_time()
    model = train(config, *given)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    x, y = gather(datasets.load(config["data"], split="val"), 20 if quick else TEST_SAMPLES)
    count, batch = len(datasets.load(config["data"], split="train")), from_dict(config).batch_size
    pictures = showpieces.draw(name, model, x, y, folder)
    samples = 2 if quick else NLL_SAMPLES
    report = evaluate.evaluate(model, x, y, num_samples=samples)
    place = machine.describe(torch.device("cpu"))
    return {
        "words": words,
        "model": config["model"],
        "data": config["data"],
        "flags": flags(SHORTER.get(name, {})),
        "epochs": config["epochs"],
        "steps": config["epochs"] * -(-count // batch),
        "parameters": parameters(model),
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "measured": {key: report[key] for key in ANSWERS if key in report},
        "pixels": report["pixels"],
        "likelihood": report["likelihood"],
        "samples": report["samples"],
        "pictures": [path.name for path in pictures],
        "made": {
            "date": machine.today()[:10],
            "commit": machine.commit(),
            "torch": str(torch.__version__),
            "cpu": place["cpu"],
            "threads": place["threads"],
        },
    }


def flags(options: dict[str, Any]) -> str:
    """The flags of ``vae-fast train`` that set ``options``, each after a space."""
    return "".join(
        f" --{key.replace('_', '-')} {json.dumps(value, separators=(',', ':'))}"
        for key, value in options.items()
    )


def caption(facts: dict[str, Any]) -> str:
    """An example's measurements in one line."""
    steps = f" ({facts['steps']:,} steps)" if "steps" in facts else ""
    answers = "; ".join(ANSWERS[key].format(value) for key, value in facts["measured"].items())
    made, epochs = facts["made"], "epoch" if facts["epochs"] == 1 else "epochs"
    return (
        f"{facts['parameters']:,} parameters, {facts['epochs']} {epochs}{steps} on {facts['data']}, "
        f"{facts['cpu_seconds']:.0f} CPU-seconds of training. On {facts['samples']} validation "
        f"samples ({facts['pixels']}, {facts['likelihood']}): {answers}. "
        f"{made['date']}, commit {made['commit']}, torch {made['torch']}, seed 0."
    )


def command(name: str, facts: dict[str, Any]) -> str:
    return f"vae-fast train --config examples/{name}.yaml{facts.get('flags', '')}"


def page(facts: dict[str, dict[str, Any]]) -> str:
    """docs/gallery.md."""
    parts = [HEAD]
    for name, found in facts.items():
        parts += [f"## {name}", "", found["words"], ""]
        parts += [f"![{picture}](gallery/{picture})" for picture in found["pictures"]]
        parts += ["", f"`{command(name, found)}`. {caption(found)}", ""]
    missing = [f"`examples/{name}.yaml`" for name in names(None) if name not in facts]
    if missing:
        parts += [f"Not made yet: {', '.join(missing)}.", ""]
    return "\n".join(parts)
