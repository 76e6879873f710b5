"""The texts of the mask benchmarks: learning sees one, the others are measured on."""

from __future__ import annotations

from dataclasses import dataclass

from maskgen.texts.text_sets import TextSet


@dataclass(frozen=True, slots=True)
class Domain:
    """Text of one domain, and how many seeds its row is repeated with."""

    name: str
    train: TextSet
    test: TextSet
    seeds: int = 1

    def digests(self) -> dict[str, str]:
        """Of its texts."""
        return {f"{self.name}:train": self.train.digest, f"{self.name}:test": self.test.digest}


@dataclass(frozen=True, slots=True)
class GeneralTexts:
    """What masks are learned on, and two texts that they are measured on."""

    learn: TextSet
    wikitext2: TextSet
    c4: TextSet

    def digests(self) -> dict[str, str]:
        """Of every text, by the name that rows use."""
        return {t.name: t.digest for t in (self.learn, self.wikitext2, self.c4)}
