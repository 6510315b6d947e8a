"""vae-fast train and vae-fast resume."""

from __future__ import annotations

from typing import Any

from vae_fast.cli.flags import make_parser, parse


def train(arguments: list[str], program: str) -> int:
    """train a model into a run folder"""
    parser = make_parser(program, train.__doc__)
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
    values = parse(parser, arguments).as_dict()
    compare, profile = values.pop("compare_reference"), values.pop("profile")
    values.pop("config")
    trainer = Trainer(from_dict(values), profile=profile)
    return _fit(trainer, compare)


def resume(arguments: list[str], program: str) -> int:
    """go on with a run that was stopped, to the same bits"""
    parser = make_parser(program, resume.__doc__)
    parser.add_argument("run", type=str, help="folder of the run")
    parser.add_argument(
        "--epochs", type=int, default=None, help="train to this many epochs instead"
    )
    parser.add_argument(
        "--profile", type=int, default=0, help="trace so many steps into the run's profile.json"
    )
    values = parse(parser, arguments)
    from vae_fast.train import Trainer

    trainer = Trainer.resume(values.run, epochs=values.epochs, profile=values.profile)
    if trainer.world.is_main:
        print(f"{values.run} goes on at step {trainer.reached.step} of {trainer.total_steps}")
    return _fit(trainer, compare=False)


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
    for name, value in result.diagnostics.items():
        print(f"Validation {name.replace('_', ' ')} {value:.4f}")
    print(f"Training speed {result.samples_per_second:,.0f} samples per second")
    if compare:
        from vae_fast.train.compare import compare_backends

        try:
            print(compare_backends(trainer))
        except RuntimeError as error:
            print(error)
    return 0
