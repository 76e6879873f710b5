"""What a copy of a model directory holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from maskgen.format.checkpoint_files import checkpoint_files

KEPT = ["LICENSE", "README.md", "chat_template.jinja", "config.json", "model.safetensors"]
LEFT = [".hidden", "pytorch_model.bin", "pytorch_model.bin.index.json", "old.safetensors", "q.gguf"]


def test_other_weights_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in (*KEPT, *LEFT):
        (tmp_path / name).write_text("{}")
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "additional_chat_templates").mkdir()
    template = tmp_path / "additional_chat_templates" / "tools.jinja"
    template.write_text("")
    found = checkpoint_files(tmp_path)
    assert [path.name for path in found if path != template] == KEPT
    assert template in found
