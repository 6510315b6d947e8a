"""vae-fast train and vae-fast resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_fast.cli.flags import Usage, load_package, make_parser, nearest, parse
from vae_fast.cli.interrupts import begin_work
from vae_fast.import_paths import paths_typed
from vae_fast.train import config_changes
from vae_fast.train.config import (
    OptimizerConfig,
    TrainConfig,
    UnknownKey,
    field_types,
    from_dict,
    to_dict,
)

TRUST = "let the {} name classes of any module, whose code is then run"
# What --help shows of the flags; --help-all shows every one.
COMMON = {
    "--config FILE.yaml": "flags win over the file",
    "--model NAME": "or an import path, package.module:Class",
    "--model-args.KEY VALUE": "an argument of the model, as --model-args.latent-dim 32",
    "--data NAME|PATH": "a name, a file, a folder of images, shards, a table",
    "--data.size PIXELS": "of image files: resize the shorter side, cut out the square",
    "--epochs N": "passes over the training data",
    "--batch-size N": "samples per step",
    "--lr RATE": "peak learning rate",
    "--objective.beta BETA": "weight of the KL term; the model's own by default",
    "--precision P": "fp32, bf16 or fp16",
    "--device DEVICE": "auto, cpu, cuda or cuda:1",
    "--seed N": "of weights, order and noise",
    "--out FOLDER": "of the run; runs/MODEL-DATA by default",
    "--compare-reference": "also time common loops in plain PyTorch",
}
COMMON_OF_RESUME = {
    "--epochs N": "train to this many epochs instead",
    "--lr RATE": "another learning rate from here on",
    "--device DEVICE": "another device from here on",
    "--trust": TRUST.format("run's config.yaml"),
    "--profile N": "trace this many steps into the run's profile.json",
}
PARTS = ("labels", "objective", "optimizer", "checkpoint")


def train(arguments: list[str], program: str) -> int:
    """train a model into a run folder"""
    parser = make_parser(program, train.__doc__)
    parser.common = COMMON
    parser.add_argument("--config", type=str, default=None, help="YAML file; flags win over it")
    parser.add_argument("--trust", action="store_true", help=TRUST.format("--config file"))
    parser.add_class_arguments(TrainConfig, nested_key=None)
    parser.add_argument(
        "--compare_reference",
        action="store_true",
        help="also time the same training in common loops in plain PyTorch",
    )
    parser.add_argument(
        "--profile", type=int, default=0, help="trace this many steps into the run's profile.json"
    )
    file, flags = _split_config(arguments)
    of_file = to_dict(TrainConfig() if file is None else _read_config(file))
    parser.set_defaults(_plain_defaults(of_file))
    flags, nested = _split_nested(flags)
    values = parse(parser, flags, load=False).as_dict()
    _take_dicts(values, of_file, flags)
    for keys, value in nested:
        _assign(values, keys, value)
    compare, profile = values.pop("compare_reference"), values.pop("profile")
    trust = values.pop("trust") or paths_typed(_split_config(arguments)[1])
    del values["config"]
    config = from_dict(values, trust=trust)
    config.check_values()
    load_package()
    from vae_fast.train import Trainer

    begin_work()
    return _fit(Trainer(config, profile=profile), compare)


def _split_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file of --config, and all other arguments.

    Our own reader reads this file, not the parser's: as data, of a limited size, without imports.
    """
    file, rest, left = None, [], iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            rest.append(argument)
            continue
        value = value if equals else next(left, "")
        if not value:
            raise Usage("--config takes the path of a YAML file")
        if file is not None:
            raise Usage(f"--config is given twice: {file} and {value}")
        file = Path(value)
    return file, rest


def _split_nested(arguments: list[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """Flags into model_args and the optimizer's dicts and lists, by keys and value, out of all flags.

    The parser would read the values of nested dicts as text.
    """
    rest, nested, left = [], [], iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        keys = flag.removeprefix("--").replace("-", "_").split(".")
        if flag.startswith("--") and keys[0] in PARTS and len(keys) == 1:
            raise Usage(
                f"{flag} has fields, each with a flag of its own, such as {_field_of(keys[0])}"
            )
        into = keys[0] == "model_args" and len(keys) > 1
        if keys[0] == "optimizer" and len(keys) > 1:
            field = getattr(OptimizerConfig(), keys[1], None)
            into |= isinstance(field, list) or (isinstance(field, dict) and len(keys) > 2)
        if not (flag.startswith("--") and into):
            rest.append(argument)
            continue
        text = value if equals else next(left, None)
        if text is None:
            raise Usage(f"{flag} takes a value")
        nested.append((keys, _value(text, flag)))
    return rest, nested


def _field_of(part: str) -> str:
    return f"--{part}.{next(iter(field_types(field_types(TrainConfig)[part])))}"


def _value(text: str, flag: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise Usage(f"{flag} takes a number, a word, a list or a dict, got {text}") from None
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3 is text in YAML 1.1
    except ValueError:
        return value


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set the nested ``value`` at ``keys``, creating missing dicts."""
    for key in keys[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[keys[-1]] = value


def _read_config(file: Path) -> TrainConfig:
    from vae_fast.files import read_yaml

    try:
        return from_dict(read_yaml(file))
    except UnknownKey as error:
        near = nearest(error.key, error.known)
        raise Usage(f"{file}: the config file's key {error.key} does not exist{near}") from None
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        where = "" if str(file) in str(error) else f"{file}: "
        raise Usage(f"{where}{error}") from None


def _plain_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's numbers and words as flags' defaults, with dots in nested names.

    The parser must not see dicts and lists: it imports the values of class_path in them.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in PARTS:
            found |= {f"{name}.{key}": of for key, of in value.items()}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if not isinstance(value, (dict, list))}


def _take_dicts(values: dict[str, Any], of_file: dict[str, Any], flags: list[str]) -> None:
    """Put the file's dicts and lists into ``values``, unless a flag has set them."""
    given = {flag.partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    if "__model_args" not in given:
        values["model_args"] = of_file["model_args"]
    for name, value in of_file["optimizer"].items():
        if isinstance(value, (dict, list)) and f"__optimizer.{name}" not in given:
            values["optimizer"][name] = value
    if "__augment" not in given:
        values["augment"] = of_file["augment"] + values["augment"]  # --augment+ appends


def resume(arguments: list[str], program: str) -> int:
    """continue a stopped run, to the same bits"""
    parser = make_parser(program, resume.__doc__)
    parser.common = COMMON_OF_RESUME
    parser.add_argument("run", type=str, help="folder of the run")
    parser.add_argument("--trust", action="store_true", help=TRUST.format("run's config.yaml"))
    parser.add_argument(
        "--profile", type=int, default=0, help="trace this many steps into the run's profile.json"
    )
    names = config_changes.fields()
    for name, kind in names.items():
        words = "train to this many epochs instead" if name == "epochs" else "another from here on"
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=words)
    values = parse(parser, arguments)
    from vae_fast.train import Trainer

    begin_work()
    asked = {name: values[name] for name in names if values[name] is not None}
    trainer = Trainer.resume(values.run, changes=asked, profile=values.profile, trust=values.trust)
    if trainer.world.is_main:
        print(f"{values.run} continues at step {trainer.progress.step} of {trainer.total_steps}")
    return _fit(trainer, compare_too=False)


def _fit(trainer: Any, compare_too: bool) -> int:
    """Train; print the pictures' paths, the loss and the speed."""
    from vae_fast.train import Interrupted

    # A failing rank exits at once, because the others may be waiting for it.
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
    for name, value in result.diagnostics.items():
        print(f"Validation {name.replace('_', ' ')} {value:.4f}")
    print(f"Training speed {result.samples_per_second:,.0f} samples per second")
    if compare_too:
        from vae_fast.train.compare import compare

        print(
            "Comparing with loops in plain PyTorch; torch.compile first takes some 20 s", flush=True
        )
        try:
            print(compare(trainer))
        except RuntimeError as error:
            print(error)
    return 0
