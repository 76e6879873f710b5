"""Which vLLM versions are taken, and that vLLM knows the plugin."""

from __future__ import annotations

import pytest

from engines.vllm_plugin.format import QuantizationSpec
from engines.vllm_plugin.version import VllmVersionError, check_version


@pytest.mark.parametrize("version", ["0.32.0", "0.32.7", "0.32.0+cpu", "0.32.1rc1", "0.32.0.dev3"])
def test_tested_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.33.0rc1"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(VllmVersionError, match=version.replace("+", r"\+")):
        check_version(version)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # vLLM's and torch's own
def test_a_checkpoint_is_refused_by_an_untested_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.vllm_plugin import config

    fields = QuantizationSpec(sparse_layers=("a",)).model_dump(mode="json")
    assert config.TwofourConfig.from_config(fields).spec.sparse_layers == ("a",)
    monkeypatch.setattr(config, "vllm_version", lambda: "0.33.0")
    with pytest.raises(VllmVersionError, match=r"0\.33\.0 is installed"):
        config.TwofourConfig.from_config(fields)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_vllm_finds_the_plugin_and_may_call_it_again() -> None:
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.plugins import load_general_plugins

    from engines.vllm_plugin import register
    from engines.vllm_plugin.config import TwofourConfig

    load_general_plugins()
    assert get_quantization_config("twofour") is TwofourConfig
    register()
    assert get_quantization_config("twofour") is TwofourConfig
