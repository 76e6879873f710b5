"""What a `config.json` says about a decoder's mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.directory.config_fields import read_count, read_flag
from engines.directory.families import Family
from engines.errors import EngineDirectoryError
from maskgen.format.experts import ExpertNames

_MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Mixture:
    """The mixtures of a model.

    Attributes:
        names: of their matrices in the checkpoint.
        experts: in each.
        chosen: experts that a token goes to.
        intermediate: of an expert.
        normalised: the weights of a token's experts add up to 1.
        layers: by decoder layer, whether its MLP is one.
    """

    names: ExpertNames
    experts: int
    chosen: int
    intermediate: int
    normalised: bool
    layers: tuple[bool, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """Linear layers of one, in the order of the native decoder."""
        return tuple(
            f"experts.{expert}.{linear}"
            for expert in range(self.experts)
            for linear in ("gate_proj", "up_proj", "down_proj")
        )

    def module(self, linear: str) -> str:
        """The checkpoint's name, in its decoder layer, of one of `linears`."""
        expert, _, role = linear.rpartition(".")
        names = self.names
        named = {"gate_proj": names.gate, "up_proj": names.up, "down_proj": names.down}[role]
        return f"{names.block}.{expert}.{named}"


def read_mixture(config: Mapping[str, Any], family: Family, layers: int) -> Mixture | None:
    """The mixtures of a model of this family; None where it has none.

    Raises:
        EngineDirectoryError: a field is malformed, or a token goes to more experts than there are.
    """
    mixing = family.mixing
    if mixing is None:
        return None
    field = next((name for name in mixing.counts if name in config), mixing.counts[-1])
    experts = read_count(config, field, most=_MOST_EXPERTS)
    chosen = read_count(config, "num_experts_per_tok")
    if chosen > experts:
        raise EngineDirectoryError(
            f"num_experts_per_tok {chosen} is more than the {experts} experts of {field}"
        )
    return Mixture(
        names=mixing.names,
        experts=experts,
        chosen=chosen,
        intermediate=read_count(config, mixing.width),
        normalised=mixing.normalised == "" or read_flag(config, mixing.normalised),
        layers=_layers(config, layers) if mixing.some_layers else (True,) * layers,
    )


def _layers(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    step, plain = read_count(config, "decoder_sparse_step"), config.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(type(layer) is int for layer in plain):
        raise EngineDirectoryError(f"mlp_only_layers {plain!r:.80} is no list of layers")
    return tuple((layer + 1) % step == 0 and layer not in plain for layer in range(layers))
