"""The command line: vae-fast train | resume | sample | reconstruct | evaluate | pack | info."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROGRAM = "vae-fast"
_DATA_HELP = "a name, a file or a folder; the run's validation data if not given"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (it failed) or 2 (it was called wrongly)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    name, arguments = argv[0], argv[1:]
    if name == "--version":
        name = "info"
    if name not in COMMANDS:
        return _fail(
            PROGRAM, f"{name!r} is not a command; the commands are {', '.join(COMMANDS)}", 2
        )
    program = f"{PROGRAM} {name}"
    try:
        return COMMANDS[name](arguments, program)
    except _Usage as error:
        return _fail(program, str(error), 2)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(program, f"{error.filename}: {error.strerror}", 1)
        return _fail(program, str(error), 1)


class _Usage(Exception):
    """The command line itself is wrong."""


# --- commands ------------------------------------------------------------------------------------


def train(arguments: list[str], program: str) -> int:
    """train a model into a run folder"""
    parser = _parser(program, train.__doc__)
    from vae_fast.train import TrainConfig, Trainer
    from vae_fast.train.config import from_dict

    parser.add_argument("--config", action="config", help="YAML file; flags win over it")
    parser.add_class_arguments(TrainConfig, nested_key=None)
    parser.add_argument(
        "--compare_reference",
        action="store_true",
        help="also time the same training in plain PyTorch",
    )
    parser.add_argument(
        "--profile", type=int, default=0, help="trace so many steps into the run's profile.json"
    )
    values = _parse(parser, arguments).as_dict()
    compare, profile = values.pop("compare_reference"), values.pop("profile")
    values.pop("config")
    trainer = Trainer(from_dict(values), profile=profile)
    return _fit(trainer, compare)


def resume(arguments: list[str], program: str) -> int:
    """go on with a run that was stopped, to the same bits"""
    parser = _parser(program, resume.__doc__)
    parser.add_argument("run", type=str, help="folder of the run")
    parser.add_argument(
        "--epochs", type=int, default=None, help="train to this many epochs instead"
    )
    values = _parse(parser, arguments)
    from vae_fast.train import Trainer

    trainer = Trainer.resume(values.run, epochs=values.epochs)
    if trainer.world.is_main:
        print(f"{values.run} goes on at step {trainer.reached.step} of {trainer.total_steps}")
    return _fit(trainer, compare=False)


def sample(arguments: list[str], program: str) -> int:
    """draw samples from a trained model"""
    parser = _run_parser(program, sample.__doc__)
    parser.add_argument("--n", type=int, default=100, help="how many")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="standard deviation of the prior's draws"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    values = _parse(parser, arguments)
    if values.n < 1:
        raise _Usage(f"--n must be at least 1, got {values.n}")
    from vae_fast.train import pictures, showcase

    restored = _restore(values)
    images = showcase.sample(restored.model, values.n, values.seed, values.temperature)
    caption = f"{restored.config.model} on {restored.config.data} · step {restored.step}"
    _write(
        values.out or Path(values.run) / "samples.png",
        images,
        lambda path: pictures.draw_samples(path, images, caption),
    )
    return 0


def reconstruct(arguments: list[str], program: str) -> int:
    """reconstruct images with a trained model"""
    parser = _run_parser(program, reconstruct.__doc__)
    parser.add_argument("--n", type=int, default=40, help="how many")
    parser.add_argument("--data", type=str, default=None, help=_DATA_HELP)
    values = _parse(parser, arguments)
    from vae_fast.train import pictures, showcase

    restored, batch, source = _model_and_samples(values)
    images = showcase.reconstruct(restored.model, batch)
    caption = f"{restored.config.model} on {source} · step {restored.step}"
    _write(
        values.out or Path(values.run) / "reconstructions.png",
        images,
        lambda path: pictures.draw_reconstructions(path, batch.images, images, caption),
    )
    return 0


def evaluate(arguments: list[str], program: str) -> int:
    """measure a trained model: ELBO, importance-sampled NLL, active units"""
    parser = _run_parser(program, evaluate.__doc__, out=None)
    parser.add_argument("--data", type=str, default=None, help=_DATA_HELP)
    parser.add_argument("--n", type=int, default=1000, help="how many samples")
    parser.add_argument(
        "--num_samples", type=int, default=100, help="K of the importance-sampled NLL, 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    values = _parse(parser, arguments)
    from vae_fast.evaluate import evaluate as measure
    from vae_fast.evaluate.run import binarized

    restored, batch, source = _model_and_samples(values)
    report = binarized(restored.config) | measure(
        restored.model, *batch, num_samples=values.num_samples, seed=values.seed
    )
    print(f"{restored.config.model} at step {restored.step}, on {source}, in nats per sample")
    _print_table(report)
    return 0


def pack(arguments: list[str], program: str) -> int:
    """write data as uint8 shards, for sets larger than memory"""
    parser = _parser(program, pack.__doc__)
    parser.add_argument(
        "source", type=str, help="a name, an .npy or .npz file, or a folder of images"
    )
    parser.add_argument("out", type=str, help="the folder of shards; resumed if it is cut short")
    parser.add_argument(
        "--split", type=str, default=None, help="of a named data set: train, val or test"
    )
    parser.add_argument("--shard_bytes", type=int, default=16 << 20, help="size of a shard, about")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if none")
    values = _parse(parser, arguments)
    from vae_fast import data as datasets
    from vae_fast.train.progress import Counter

    source = values.source
    if values.split is not None:
        source = datasets.load(source, split=values.split)
    with Counter(" samples") as counter:
        packed = datasets.pack(
            source,
            values.out,
            shard_bytes=values.shard_bytes,
            seed=values.seed,
            workers=values.workers,
            progress=counter.show,
        )
    print(f"{len(packed):,} samples in {values.out}")
    return 0


def info(arguments: list[str], program: str) -> int:
    """show versions, instruction sets and why a backend is missing"""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: {program}\n\n{info.__doc__}")
        return 0
    if arguments:
        raise _Usage(f"it takes no arguments, got {' '.join(arguments)}")
    import vae_fast

    _print_table(vae_fast.info())
    return 0


COMMANDS: dict[str, Callable[[list[str], str], int]] = {
    "train": train,
    "resume": resume,
    "sample": sample,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "pack": pack,
    "info": info,
}


# --- parts of commands ---------------------------------------------------------------------------


def _fit(trainer: Any, compare: bool) -> int:
    """Train; say where the pictures are, the loss and the speed."""
    from vae_fast.train import Interrupted

    # A rank that fails leaves without a word to the others, which may be waiting for it.
    try:
        result = trainer.fit()
    except Interrupted as stopped:
        if trainer.world.is_main:
            print(stopped)
        trainer.world.leave()
        return 128 + stopped.signal
    trainer.world.leave()
    if not trainer.world.is_main:
        return 0
    print("Pictures:")
    for path in result.pictures:
        print(f"  {path}")
    print(
        f"Validation loss {result.loss:.2f} nats per sample "
        f"(reconstruction {result.recon:.2f}, KL {result.kl:.2f})"
    )
    print(f"Training speed {result.samples_per_second:,.0f} samples per second")
    if compare:
        from vae_fast.train.compare import compare_backends

        try:
            print(compare_backends(trainer))
        except RuntimeError as error:
            print(error)
    return 0


def _run_parser(
    program: str, description: str | None, out: str | None = ".png picture or .npy array"
) -> Any:
    parser = _parser(program, description)
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument(
        "--checkpoint", type=str, default="best", help="best, last or the step of a checkpoint"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    if out is not None:
        parser.add_argument("--out", type=str, default=None, help=f"{out}; in the run if not given")
    return parser


def _restore(values: Any) -> Any:
    from vae_fast.tasks import load_model

    if getattr(values, "out", None) is not None and Path(values.out).suffix not in (".png", ".npy"):
        raise _Usage(f"--out must end in .png (a picture) or .npy (an array), got {values.out}")
    return load_model(values.run, values.checkpoint, values.device)


def _model_and_samples(values: Any) -> tuple[Any, Any, str]:
    """The model of ``values.run``, the first ``values.n`` samples of its data, and their name."""
    if values.n < 1:
        raise _Usage(f"--n must be at least 1, got {values.n}")
    from vae_fast import data as datasets
    from vae_fast.train import showcase

    restored = _restore(values)
    source = values.data or restored.config.data
    data = datasets.load(source, split="val") if values.data is None else datasets.as_data(source)
    shape, expected = tuple(data.shape), tuple(restored.model.input_shape)
    if shape != expected:
        raise ValueError(f"{source} has samples of shape {shape}, the model takes {expected}")
    device = next(restored.model.parameters()).device
    config = restored.config
    batches = datasets.Batches(
        data, min(values.n, 128), shuffle=False, device=device,
        binarize=config.binarize != "none", seed=config.seed,
    )  # fmt: skip
    return restored, showcase.first_samples(batches, values.n), source


def _print_table(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}s}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _write(out: str | Path, images: Any, draw: Callable[[Path], None]) -> None:
    """Write images as an array or a picture, as the suffix says, and say where."""
    from vae_fast.train.run_folder import written_beside

    out = Path(out)
    if out.suffix != ".npy" and images.dim() != 4:
        raise ValueError(
            f"samples of shape {tuple(images.shape[1:])} are no images: write them with --out X.npy"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(out) as beside:
        if out.suffix == ".npy":
            import numpy as np

            with open(beside, "wb") as file:
                np.save(file, images.float().cpu().numpy())
        else:
            draw(beside)
    print(out)


# --- jsonargparse --------------------------------------------------------------------------------


def _parser(program: str, description: str | None) -> Any:
    from vae_fast.train.extras import need

    jsonargparse = need("jsonargparse", "the command line")
    need("yaml", "the command line")

    class Parser(jsonargparse.ArgumentParser):
        """Shows flags with dashes, as people type them."""

        def format_help(self) -> str:
            return _dashed(super().format_help())

    return Parser(prog=program, description=description, exit_on_error=False)


def _parse(parser: Any, arguments: list[str]) -> Any:
    """Parse flags with dashes or underscores; mistakes raise _Usage with one readable sentence."""
    try:
        return parser.parse_args([_underscored(argument) for argument in arguments])
    except argparse.ArgumentError as error:
        raise _Usage(_readable(str(error), parser)) from None


def _underscored(argument: str) -> str:
    """--batch-size=4 as --batch_size=4, the name of the dataclass's field."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _dashed(text: str) -> str:
    return re.sub(r"--\w[\w.]*", lambda flag: flag[0].replace("_", "-"), text)


def _readable(message: str, parser: Any) -> str:
    """A jsonargparse message in the words of the command line, where it is one we know."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return f"there is no flag {_dashed(found[1])}{_nearest(found[1], known)}"
    if found := re.search(
        r"(?:Option|Key) ['\"]([\w.]+)['\"] is not (?:accepted|expected)", message
    ):
        return _no_such_key(found[1], known)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return _no_such_key(f"{found[1]}.{found[2]}", known)
    if found := re.search(
        r'key "([\w.]+)":\s+Expected an? <class \'(\w+)\'>. Got value: (.*)', message
    ):
        return f"--{found[1].replace('_', '-')} takes a value of type {found[2]}, got {found[3]}"
    return _dashed(message)


def _no_such_key(key: str, known: list[str]) -> str:
    near = _nearest(key, [flag.lstrip("-") for flag in known])
    return f"the config file's key {key} does not exist{near}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {_dashed(near[0])}?" if near else ""


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"usage: {PROGRAM} COMMAND ...", ""]
    lines += [f"  {name:{width}s}  {command.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", f"{PROGRAM} COMMAND --help shows a command's flags."]
    return "\n".join(lines)


def _fail(program: str, message: str, status: int) -> int:
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(f"{program}: error: {rank}{message}", file=sys.stderr)
    return status
