"""Patch or copy: which way a mask beside the base is kept, by the share of groups it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Storage = Literal["patch", "copy"]
"""How a mask beside the base is kept: as a difference, or as a full set of packed weights."""

PATCH_LIMIT = 0.02
"""Share of changed groups up to which a mask is kept as a patch, unless an option says otherwise.

In docs/results/mask-mix.json a copy saves a tenth of a step from 1.5 to 2.3 % on (five
measurements, two masks), and patch and copy are level at 2.9 to 14 % with four to sixteen masks in
use. At 2 % a patch takes a seventeenth of a copy's memory. A constant, and not a measurement at
every start: which of the two it is changes last bits of answers, so it is the same each time.
"""


@dataclass(frozen=True)
class StorageRule:
    """Keeps masks as patches up to a share of changed groups, and as copies beyond it.

    Attributes:
        limit: the share, 0 to 1; below 0 for no patches at all.
        why: where it comes from, for people.
    """

    limit: float
    why: str

    def storage(self, changed_share: float) -> Storage:
        """How to keep a mask that changes this share of the groups."""
        return "patch" if changed_share <= self.limit else "copy"

    def reason(self, changed_share: float) -> str:
        """The choice in words."""
        return f"{changed_share:.2%} of groups changed; {self.why}"


FIXED_RULE = StorageRule(PATCH_LIMIT, f"a patch up to {PATCH_LIMIT:.2%}")
"""What `twofour build` records, and what masks that are loaded later follow."""


def chosen_rule(
    storage: Storage | None, patch_limit: float | Literal["measure"] | None
) -> StorageRule | None:
    """The rule that the options name; None if it is to be measured."""
    if storage is not None:
        return StorageRule(1.0 if storage == "patch" else -1.0, f"mask_storage is {storage}")
    if patch_limit == "measure":
        return None
    if patch_limit is not None:
        return StorageRule(patch_limit, f"a patch up to {patch_limit:.2%}, which patch_limit says")
    return FIXED_RULE


def storage_of(
    changed_share: float, recorded: str | None, rule: StorageRule = FIXED_RULE
) -> tuple[Storage, str]:
    """How a mask is kept, and why.

    Args:
        changed_share: of its groups.
        recorded: what the directory that carries it says; counts before the fixed rule, and not
            before one that an option names.
        rule: decides otherwise.
    """
    if rule is FIXED_RULE and recorded is not None:
        storage: Storage = "copy" if recorded == "copy" else "patch"
        return storage, f"{changed_share:.2%} of groups changed; recorded when it was built"
    return rule.storage(changed_share), rule.reason(changed_share)
