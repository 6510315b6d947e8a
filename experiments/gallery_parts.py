"""The gallery's table: registered models and parts, trained with one small budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.pictures import Band, compose
from experiments.training import Clock, fashion, parameters, train
from vae_fast import evaluate, tasks
from vae_fast.models import MODELS, QUANTIZERS
from vae_fast.models.interface import uses_labels
from vae_fast.models.objectives import OBJECTIVE_NAMES
from vae_fast.models.posteriors import POSTERIORS
from vae_fast.models.priors import PRIORS

STEPS, BATCH = 300, 128
TEST_SAMPLES, NLL_SAMPLES = 200, 20
COLUMNS = 10
MAPS = {"channels": 4, "multipliers": [1, 2, 4], "groups": 4}
VECTORS = {"network": "mlp", "network_options": {"hidden": [256]}, "places": 49}
# Networks smaller than the default ones, and options without which a model trains longer.
SIZES: dict[str, dict[str, Any]] = {
    "autoencoder-kl": MAPS,
    "vq-vae": {"network_options": MAPS},
    **dict.fromkeys(QUANTIZERS[1:], VECTORS),
    "hvae": {"levels": 3},
    "vrae": {"hidden": 64},
    "factor": {"objective_options": {"hidden": [256, 256]}},
    "miwae": {"objective_options": {"samples": 3, "estimates": 2}},
    "piwae": {"objective_options": {"samples": 3, "estimates": 2}},
    "capacity": {"objective_options": {"rise": STEPS, "gamma": 10.0}},
    "latent-diffusion": {"objective_options": {"start": STEPS // 2, "channels": 8}},
    "vae-gan": {"objective_options": {"channels": 16}},
    "riemannian": {"latent_dim": 5, "objective_options": {"anchors": 200}},
    "poincare": {"latent_dim": 5},
    "vmf": {"latent_dim": 5},
}

HEAD = f"""\
## Models and parts

One training of each: {STEPS} steps of {BATCH} images of fashion10k, the first seed, the command's
defaults except for the arguments shown and these (`SIZES` in `experiments/gallery_parts.py`):

- Networks and numbers of samples are smaller where the defaults are too large for a CPU.
- `capacity` has a `gamma` of 10 (1000 by default) and a `rise` of {STEPS} steps (25,000).
- `latent_dim` is 5 (20) for the posteriors `vmf` and `poincare` and the objective `riemannian`.
- The discriminator of `latent-diffusion` starts at step {STEPS // 2} (50,000).
- Networks of the quantisers `rvq`, `fsq` and `lfq` are MLPs with {VECTORS["places"]} codes an image; the one
  of `vq-vae` is convolutional.

That is enough to see that each part learns, and too little to compare them. `vae-gan` is the
exception: with MLPs and so few steps its images are still noise. The example `vae_gan` above has
convolutional networks and a lower learning rate, and reconstructs. Rows of a picture:
validation images, their reconstructions, samples. A vq-vae's samples are of codes drawn singly, by
their frequency, and so show no objects: `--sampler pixelcnn` draws them jointly. NLL is an importance-sampled bound (K = {NLL_SAMPLES})
over {TEST_SAMPLES} grey validation images, in nats; error is squared, per pixel.

| `vae-fast train` | parameters | NLL | KL | error | picture |
|---|---|---|---|---|---|
"""


def entries() -> dict[str, dict[str, Any]]:
    """A configuration for each registered model, objective, posterior, prior and quantiser."""
    found: dict[str, dict[str, Any]] = {name: {"model": name} for name in MODELS}
    for name in OBJECTIVE_NAMES[1:]:
        model = "ae" if name.startswith("rae") else "vae"
        found[name] = {"model": model, "model_args": {"objective": name}}
    for name in POSTERIORS[1:]:
        found[f"posterior-{name}"] = {"model": "vae", "model_args": {"posterior": name}}
    for name in PRIORS[1:]:
        if name != "vamp":  # the model vamp-vae
            found[f"prior-{name}"] = {"model": "vae", "model_args": {"prior": name}}
    for name in QUANTIZERS[1:]:
        found[name] = {"model": "vq-vae", "model_args": {"quantizer": name}}
    for name, config in found.items():
        sizes = {**SIZES.get(config["model"], {}), **SIZES.get(name.split("-")[-1], {})}
        sizes |= SIZES.get(name, {})
        config["shown"] = dict(config.get("model_args", {}))
        config["model_args"] = {**sizes, **config["shown"]}
    return found


def made(folder: Path) -> dict[str, Any]:
    """The facts of the entries trained so far, in order."""
    file = folder / "parts.json"
    facts = json.loads(file.read_text()) if file.is_file() else {}
    return {name: facts[name] for name in entries() if name in facts}


def make(folder: Path, only: list[str], quick: bool, clock: Clock) -> None:
    """Train what ``only`` names, or for "parts" all entries that are missing."""
    configs, facts = entries(), made(folder)
    names = [n for n in configs if f"part-{n}" in only or ("parts" in only and n not in facts)]
    for name in names:
        clock.say(name)
        facts[name] = show(name, configs[name], folder, quick)
        clock.say(row(facts[name]))
        text = json.dumps({**made(folder), name: facts[name]}, indent=1, allow_nan=False)
        (folder / "parts.json").write_text(text + "\n")


def show(name: str, config: dict[str, Any], folder: Path, quick: bool) -> dict[str, Any]:
    """Train, measure and draw one entry."""
    values = {
        "model": config["model"],
        "model_args": config["model_args"],
        "data": "fashion10k",
        "batch_size": BATCH,
        "epochs": 100,
        "max_steps": 2 if quick else STEPS,
    }
    model = train(values, fashion("train"), fashion("val", limit=20))
    test = fashion("val", limit=COLUMNS if quick else TEST_SAMPLES)
    x, y = test.images, test.labels
    report = evaluate.evaluate(model, x, y, num_samples=2 if quick else NLL_SAMPLES)
    given = y[:COLUMNS] if uses_labels(model) else None
    bands = [
        Band("validation images", x[:COLUMNS]),
        Band("reconstructions", tasks.reconstruct(model, x[:COLUMNS], given)),
        Band("samples", tasks.generate(model, COLUMNS, seed=0)),
    ]
    picture = compose(folder / f"part-{name}.png", bands, columns=COLUMNS, scale=1)
    return {
        "model": config["model"],
        "shown": config["shown"],
        "parameters": parameters(model),
        "measured": {k: report[k] for k in ("nll", "kl", "reconstruction_mse") if k in report},
        "picture": picture.name,
    }


def row(facts: dict[str, Any]) -> str:
    """An entry's line of the table."""
    shown = "".join(f" --model-args.{key} {value}" for key, value in facts["shown"].items())
    measured = facts["measured"]
    nll, kl = (f"{measured[key]:.1f}" if key in measured else "" for key in ("nll", "kl"))
    return (
        f"| `--model {facts['model']}{shown}` | {facts['parameters']:,} | {nll} | {kl} | "
        f"{measured['reconstruction_mse']:.4f} | ![{facts['picture']}](gallery/{facts['picture']}) |"
    )


def table(facts: dict[str, Any]) -> str:
    """The gallery's section, with a line for each entry, and the names of missing ones."""
    text = HEAD + "\n".join(row(found) for found in facts.values()) + "\n"
    missing = [f"`{name}`" for name in entries() if name not in facts]
    return text + (f"\nNot made yet: {', '.join(missing)}.\n" if missing else "")
