"""Options of networks whose default changed, so that what earlier versions saved still loads.

A new run writes these options into its configuration. A saved configuration without them was
written when the default was another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Options = Mapping[str, Mapping[str, Any]]  # of each network

NOW: Options = {
    "conv": {"upsampling": "resize", "channels": None},  # None: by the images' size
    "resnet": {"upsampling": "resize"},
}
EARLIER: Options = {
    "conv": {"upsampling": "transposed", "channels": [32, 64]},
    "resnet": {"upsampling": "transposed"},
}
_IGNORED = ("latent_dim", "network", "network_options", "decoder_network", "decoder_options")
_OTHERS = ("hvae", "vrae", "autoencoder-kl")  # models without these networks


def written_out(model: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """``model_args`` of a new model with today's defaults in it, for saving."""
    return _filled(model, model_args, NOW)


def of_saved(model: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """``model_args`` as a run or an export saved them, with the defaults of their time."""
    if model == "autoencoder-kl":  # it took these, and ignored them
        model_args = {name: v for name, v in model_args.items() if name not in _IGNORED}
    return _filled(model, model_args, EARLIER)


def _filled(model: str, model_args: Mapping[str, Any], defaults: Options) -> dict[str, Any]:
    args = dict(model_args)
    if ":" in model or model in _OTHERS or args.get("of", "vae") in _OTHERS:
        return args
    network = str(args.get("network"))
    own_network, own_options = args.get("decoder_network"), args.get("decoder_options")
    if network in defaults:
        args["network_options"] = {**defaults[network], **(args.get("network_options") or {})}
    kind = str(own_network or network)
    if kind in defaults and (own_options is not None or own_network not in (None, network)):
        args["decoder_options"] = {**defaults[kind], **(own_options or {})}
    return args
