"""Start a run from the weights of another run."""

from __future__ import annotations

from collections.abc import Sequence

from vae_fast.models.interface import Model
from vae_fast.train import checkpoint
from vae_fast.train.run_folder import RunFolder

_NAMED = 6  # tensors named in a message


def load_initial_weights(model: Model, run: str) -> str:
    """Load the weights of ``run`` whose names and shapes fit into ``model``; returns a sentence
    about them.

    They come from the best checkpoint, or from the last if there is no best, and are the moving
    average if the run kept one. No code of that run is executed.

    Raises ValueError if it is no run, has no checkpoint, or nothing fits.
    """
    checkpoints = RunFolder(run).checkpoints
    found = [(which, checkpoint.pointed_folder(checkpoints, which)) for which in ("best", "last")]
    which, folder = next(((w, f) for w, f in found if f is not None), (None, None))
    if folder is None:
        raise ValueError(f"init_from: {run} has no checkpoint yet")
    saved = checkpoint.load(folder)
    step = saved.state.get("step", {})
    theirs = saved.weights | (step.get("average", {}) if isinstance(step, dict) else {})
    own = model.state_dict()
    fits = {k: t for k, t in theirs.items() if k in own and own[k].shape == t.shape}
    if not fits:
        raise ValueError(
            f"init_from: no weight of {run} fits this model by name and shape: "
            f"{_first_names(list(theirs))} there, {_first_names(list(own))} here"
        )
    model.load_state_dict(fits, strict=False)
    shapes = [
        f"{k} {tuple(t.shape)} there, {tuple(own[k].shape)} here"
        for k, t in theirs.items()
        if k in own and k not in fits
    ]
    rest = {
        "of another shape": shapes,
        "only there": [k for k in theirs if k not in own],
        "only here": [k for k in own if k not in theirs],
    }
    said = [f"{what}: {_first_names(names)}" for what, names in rest.items() if names]
    return (
        f"starts from the {which} weights of {run}: {len(fits)} of this model's {len(own)} "
        f"tensors taken{''.join(f'; {line}' for line in said)}"
    )


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
