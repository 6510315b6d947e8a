"""Fitted samplers in a run's folder: fitted once, and read from there afterwards.

samplers/gmm.safetensors    the sampler's state_dict; as metadata, what it was fitted to
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vae_fast.extras import need
from vae_fast.files import atomic_write
from vae_fast.tasks.samplers import FITTED, Sampler, make_sampler


def kept_sampler(
    run: str | Path,
    name: str,
    model: Any,
    fit: Callable[[], Any],
    *,
    fitted_to: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Sampler | None:
    """The run's sampler ``name``: read from its folder, or else fitted by ``fit()`` and kept there.

    Args:
        model: the run's. options: as for ``make_sampler``.
        fitted_to: what the fit depends on besides the model's weights; plain values. A sampler that was
            fitted to something else is fitted again.
        say: called with a line that says which of the two.
    """
    if name not in FITTED:
        return fit()
    tools = need("safetensors.torch", "keeping a fitted sampler")
    path = Path(run) / "samplers" / f"{name}.safetensors"
    asked = {**fitted_to, "options": options, "weights": _checksum(model)}
    wanted = json.dumps(asked, sort_keys=True)
    found = _metadata(path)
    if found == wanted:
        made: Any = make_sampler(name, model, **options)
        device = next(iter(made.state_dict().values())).device
        made.load_state_dict(tools.load_file(path, device=str(device)))
        say(f"the sampler {name} is the one of {path}")
        return made.eval()
    made = fit()
    tensors = {key: t.detach().cpu().contiguous() for key, t in made.state_dict().items()}
    again = " again, for the one there was fitted to something else" if found is not None else ""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as beside:
            tools.save_file(tensors, beside, metadata={"fitted_to": wanted})
    except OSError as error:
        say(f"the sampler {name} was fitted{again}; it can't be kept in {path.parent}: {error}")
        return made
    say(f"the sampler {name} was fitted{again}, and is kept in {path}")
    return made


def _checksum(model: nn.Module) -> int:
    """A checksum of the model's weights, to detect a sampler that was fitted with others."""
    found = 0
    for name, t in model.state_dict().items():
        data = t.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(data.numpy(), zlib.crc32(name.encode(), found))
    return found


def _metadata(path: Path) -> str | None:
    """What the file's sampler was fitted to; "" if it can't be read, None if there is no file."""
    if not path.is_file():
        return None
    try:
        with need("safetensors", "reading a fitted sampler").safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("fitted_to", "")
    except Exception:  # noqa: BLE001 - cut short, or of another kind: it is made again
        return ""
