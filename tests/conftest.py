"""Settings shared by all tests."""

from __future__ import annotations

import os

# Before any test module imports transformers or torch.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
