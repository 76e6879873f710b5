"""A model in torch as the subject of an evaluation."""

from __future__ import annotations

from pathlib import Path

from evaluation.subject import Subject, TokenScore


def torch_subject(
    model: str, transform: Path | None, mask: Path | None, parent: Path | None, dtype: str
) -> Subject:
    """A model in torch, transformed if so wished, with the weights that `mask` drops set to zero.

    Raises:
        TransformError: the transform file is malformed or belongs to another model.
        MaskFileError: the mask file is malformed or belongs to another model.
        ModelNotFoundError: there is no such model.
    """
    from maskgen.format.digests import base_digest
    from maskgen.format.mask import check_base
    from maskgen.format.mask_file import read_mask
    from maskgen.format.tokenizer import ModelTokenizer
    from maskgen.models import model_name, resolve_model
    from maskgen.torch_model import (
        TorchScorer,
        apply_to_module,
        context_length,
        dtype_name,
        load_model,
    )

    directory = resolve_model(model, transform)
    loaded = None if mask is None else read_mask(mask, parent)
    if loaded is not None:
        check_base(loaded, base_digest(directory), model)
    network, tokenizer = load_model(directory, dtype), ModelTokenizer(directory)
    if loaded is not None:
        apply_to_module(network, loaded)
    scorer = TorchScorer(network)
    return Subject(
        token_scores=lambda tokens: [TokenScore(*score) for score in scorer.tokens(tokens)],
        encode=tokenizer.encode,
        model=model_name(model),
        mask=None if mask is None else mask.name,
        dtype=dtype_name(network),
        bos_token_id=tokenizer.bos_token_id,
        context_length=context_length(network),
    )
