"""Which model names a server answers to: `base`, and `base:mask` for every loaded mask."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from engines.base import Engine, EngineInfo, MaskInfo
from engines.mask_rules import DENSE
from serving.errors import ApiError, invalid
from serving.schemas.other import MaskCard, ModelCard


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a request's model name stands for.

    Attributes:
        model: the canonical name.
        mask: the mask to ask the engine for; None is the engine's default.
        fingerprint: changes whenever the same request may get another answer.
    """

    model: str
    mask: str | None
    fingerprint: str


class ModelNames:
    """Maps names to masks and lists the cards."""

    def __init__(self, engine: Engine, served_name: str | None, created: int) -> None:
        self._engine = engine
        self.base = served_name or engine.describe().model
        self._created = created

    def resolve(self, model: str | None, mask: str | None = None) -> ResolvedModel:
        """What `model` and the separate `mask` field name together; no model is the served one.

        Raises:
            ApiError: 404 for an unknown name, 400 if the two contradict each other.
        """
        model = self.base if model is None else model
        prefix = f"{self.base}:"
        named = model.removeprefix(prefix) if model.startswith(prefix) else None
        if model != self.base and not named:
            raise self._unknown(model, "model")
        if named and mask is not None and named != mask:
            raise invalid(f"model names the mask {named!r}, the mask field {mask!r}", "mask")
        wanted = named or mask
        info = self._engine.describe()
        effective = wanted or info.default_mask
        found = next((m for m in info.masks if m.name == effective), None)
        dense = wanted == DENSE and info.dense_bytes is not None
        if wanted is not None and found is None and not dense:
            raise self._unknown(model if named else wanted, "model" if named else "mask")
        return ResolvedModel(
            model=f"{self.base}:{wanted}" if wanted else self.base,
            mask=wanted,
            fingerprint=_fingerprint(info, found),
        )

    def check_unchanged(self, target: ResolvedModel) -> None:
        """Raise a 404 if the name stands for nothing by now, a 409 if for another mask.

        A mask can be unloaded, and another one loaded under its name, while a request waits for
        its prompt to be tokenized; it must not be answered under the wrong one.
        """
        if self.resolve(target.model) != target:
            raise ApiError(
                409,
                f"the mask of {target.model!r} was replaced while this request waited; try again",
                param="model",
                code="mask_replaced",
            )

    def cards(self) -> list[ModelCard]:
        """The base model's card, one for each mask, and one for the dense model beside them."""
        info = self._engine.describe()
        default = next((m for m in info.masks if m.name == info.default_mask), None)
        dense = [] if info.dense_bytes is None else [DENSE]
        return [
            self._card(info, self.base, None, default),
            *(self._card(info, f"{self.base}:{m.name}", self.base, m) for m in info.masks),
            *(self._card(info, f"{self.base}:{DENSE}", self.base, None) for _ in dense),
        ]

    def card(self, model: str) -> ModelCard:
        """One card.

        Raises:
            ApiError: 404 for an unknown name.
        """
        for card in self.cards():
            if card.id == model:
                return card
        raise self._unknown(model, "model")

    def _card(
        self, info: EngineInfo, name: str, parent: str | None, mask: MaskInfo | None
    ) -> ModelCard:
        return ModelCard(
            id=name,
            object="model",
            created=self._created,
            owned_by="twofour",
            root=info.model,
            parent=parent,
            max_model_len=info.context_length,
            base_digest=info.base_digest,
            mask=mask_card(mask) if mask else None,
        )

    def _unknown(self, name: str, param: str) -> ApiError:
        known = ", ".join(card.id for card in self.cards()[:20])
        return ApiError(
            404,
            f"{param} {name[:100]!r} does not exist here; there are: {known}",
            param=param,
            code="model_not_found",
        )


def mask_card(mask: MaskInfo) -> MaskCard:
    """A mask as `/v1/models` shows it."""
    return MaskCard(
        name=mask.name,
        digest=mask.digest,
        domain=mask.domain,
        storage=mask.storage,
        changed_share=mask.changed_share,
        resident=mask.resident,
        resident_bytes=mask.resident_bytes,
    )


def _fingerprint(info: EngineInfo, mask: MaskInfo | None) -> str:
    weights = f"{info.base_digest[:16]}_{mask.digest[:16] if mask else 'dense'}"
    numerics = f"{info.numerics}\n{mask.numerics if mask else ''}"
    return f"fp_{weights}_{hashlib.sha256(numerics.encode()).hexdigest()[:8]}"
