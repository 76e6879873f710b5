"""The dense model beside masks, as requests see it."""

from __future__ import annotations

from pathlib import Path

from serving.names import ModelNames
from tests.serving.conftest import App, open_app
from tests.serving.fake_engine import FakeEngine
from tests.serving.requests import COMPLETION, post


async def test_it_has_a_name_a_card_and_a_fingerprint(tmp_path: Path) -> None:
    async with open_app(tmp_path, FakeEngine(tmp_path, dense_bytes=77)) as app:
        cards = (await app.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in cards] == [
            "tiny",
            "tiny:general",
            "tiny:french",
            "tiny:dense",
        ]
        assert (cards[-1]["parent"], cards[-1]["mask"]) == ("tiny", None)
        status, answer = await post(app, "/v1/completions", {**COMPLETION, "model": "tiny:dense"})
        assert (status, answer["model"]) == (200, "tiny:dense")
        assert app.engine.requests[-1].mask == "dense"
        assert answer["system_fingerprint"].split("_")[2] == "dense"
        status, _ = await post(app, "/v1/completions", {**COMPLETION, "mask": "dense"})
        assert status == 200
        engine = (await app.client.get("/version")).json()["engine"]
        assert engine["dense_bytes"] == 77
        metrics = (await app.client.get("/metrics")).text
        assert 'twofour:dense_weight_bytes{model_name="tiny"} 77.0' in metrics


async def test_where_there_is_none_it_is_unknown(app: App) -> None:
    status, answer = await post(app, "/v1/completions", {**COMPLETION, "model": "tiny:dense"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "dense_weight_bytes" not in (await app.client.get("/metrics")).text
    names: ModelNames = app.app.state.service.names
    assert "tiny:dense" not in [card.id for card in names.cards()]
