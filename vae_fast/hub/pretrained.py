"""Models as folders for Hugging Face's tools: safetensors, config.json, a model card.

from vae_fast.hub import pretrained, pretrained_class
pretrained("runs/vae").save_pretrained("my-vae") model =
pretrained_class().from_pretrained("my-vae") model.push_to_hub("me/my-vae")
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vae_fast import models
from vae_fast.extras import need
from vae_fast.import_paths import Trust, named_by, plain
from vae_fast.tasks import load_model
from vae_fast.train import earlier

CARD = """---
library_name: vae_fast
tags:
- variational-autoencoder
- {model}
---

# {model} on {data}

A `{model}` for samples of shape {shape}, trained with vae_fast.

| | |
|---|---|
{rows}

```python
from vae_fast.hub import pretrained_class

model = pretrained_class().from_pretrained("FOLDER OR REPOSITORY")
images = model.sample(16)
codes = model.encode(x)   # x: (N, {sizes}), in the data's units (images: [0, 1] or uint8)
```

```json
{options}
```
"""


def card_of(config: Mapping[str, Any]) -> str:
    """A model card, in Markdown with Hugging Face's header, from what a folder's config.json has."""
    run = config.get("run") or {}
    rows = "\n".join(f"| {name} | {value} |" for name, value in run.items())
    shape = list(config["input_shape"])
    return CARD.format(
        model=config["model"],
        data=run.get("data", "data of its own"),
        shape=tuple(shape),
        sizes=", ".join(map(str, shape)),
        rows=rows or "| trained | elsewhere |",
        options=json.dumps(config.get("model_args") or {}, indent=2),
    )


@functools.cache
def pretrained_class() -> type[nn.Module]:
    """The class of such models, created on first use. It needs huggingface_hub."""
    hub: Any = need("huggingface_hub", "saving and loading pretrained models", "huggingface_hub")
    need("safetensors.torch", "saving and loading pretrained models")

    class Pretrained(  # type: ignore[call-arg]  # the base is found at run time
        nn.Module,
        hub.PyTorchModelHubMixin,  # type: ignore[misc]
        library_name="vae_fast",
        tags=["variational-autoencoder"],
    ):
        """One of vae_fast's models, with the arguments to build it again.

        The model's own methods (encode, decode, loss, reconstruct, sample, ...) are this object's.

        Args:
            model, input_shape, model_args: as for ``vae_fast.models.build``.
            run: facts about its training, for the model card.
        """

        def __init__(
            self,
            model: str,
            input_shape: Sequence[int],
            model_args: dict[str, Any] | None = None,
            run: dict[str, Any] | None = None,
        ) -> None:
            super().__init__()
            model_args = earlier.written_out(model, model_args or {})
            saved = self.__dict__["_hub_mixin_config"]  # config.json, which the mixin has made
            self.__dict__["_hub_mixin_config"] = {**saved, "model_args": plain(model_args)}
            self.described = plain(
                {
                    "model": model,
                    "input_shape": list(input_shape),
                    "model_args": model_args,
                    "run": run or {},
                }
            )
            self.model = models.build(model, tuple(input_shape), **model_args)

        def forward(self, *args: Any, **options: Any) -> Any:
            return self.model(*args, **options)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name == "model":
                    raise
                return getattr(super().__getattr__("model"), name)

        def generate_model_card(self, *args: Any, **options: Any) -> Any:
            return hub.ModelCard(card_of(self.described))

        @classmethod
        def _from_pretrained(cls, *, trust: Trust = False, model: str = "", **options: Any) -> Any:
            """config.json names classes; other packages' classes are accepted only with
            ``trust``."""
            options["model_args"] = earlier.of_saved(model, options.get("model_args") or {})
            return super()._from_pretrained(model=named_by(model, trust), **options)

        @classmethod
        def from_pretrained(cls, *args: Any, trust: Trust = False, **options: Any) -> Any:
            """A model from a folder or a repository, in evaluation mode.

            Args:
                trust: whether config.json may name a model of any module, whose code is then run.
            """
            return super().from_pretrained(*args, trust=trust, **options)

    return Pretrained


def pretrained(run: str | Path, which: str | int = "best", *, trust: Trust = False) -> nn.Module:
    """The model of a run as a ``pretrained_class()``, on the CPU, in evaluation mode.

    Args:
        run, which, trust: as for ``vae_fast.tasks.load_model``.
    """
    cls: Any = pretrained_class()
    restored = load_model(run, which, "cpu", trust=trust)
    config = restored.config
    facts = {"data": config.data, "epochs": config.epochs, "step": restored.step,
             "batch size": config.batch_size, "seed": config.seed}  # fmt: skip
    facts |= _measured(Path(run), restored.step)
    made = cls(str(config.model), list(restored.model.input_shape), plain(config.model_args), facts)
    made.model.load_state_dict(restored.model.state_dict())
    return made.eval()


def _measured(run: Path, step: int) -> dict[str, float]:
    """The last validation's loss and its terms up to ``step``, out of metrics.jsonl."""
    found: dict[str, float] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row.get("split") == "val" and row.get("step", 0) <= step:
            found |= {f"validation {k}": row.get(k) for k in ("loss", "recon", "kl")}
    return {k: round(v, 4) for k, v in found.items() if isinstance(v, (int, float))}
