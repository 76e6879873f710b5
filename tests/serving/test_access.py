"""Keys, probes, and the routes that change masks."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from serving.api import admin
from serving.api.health import PATHS
from serving.auth import ApiRoute
from serving.config import ServerSettings
from serving.errors import without_folder
from tests.serving.conftest import App, open_app
from tests.serving.fake_engine import digest_of

KEYS = {"api_key": ("one", "two")}
BODIES = {
    "/v1/completions": {"model": "tiny", "prompt": "x", "max_tokens": 1},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/v1/load_mask": {"mask_name": "new", "mask_path": "new.safetensors"},
    "/v1/unload_mask": {"mask_name": "french"},
}


def all_routes(app: App) -> list[tuple[str, str]]:
    """Method and path of every route, as the app's own description and router know them."""
    found = {("GET", "/openapi.json")}
    for path, operations in app.app.openapi()["paths"].items():
        for method in operations:
            found.add((method.upper(), path.replace("{model}", "tiny")))
    return sorted(found)


async def call(app: App, method: str, path: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await app.client.request(method, path, json=BODIES.get(path), headers=headers)


async def test_every_route_but_the_probes_needs_a_key(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    async with open_app(tmp_path / "e", **KEYS, admin_api_key=("admin",), mask_root=masks) as app:
        routes = all_routes(app)
        assert len(routes) >= 14
        for method, path in routes:
            answer = await call(app, method, path)
            assert answer.status_code == (200 if path in PATHS else 401), path
            if path not in PATHS:
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]


async def test_keys_open_their_own_level_only(tmp_path: Path) -> None:
    (tmp_path / "new.safetensors").write_text("mask")
    settings = {**KEYS, "admin_api_key": ("admin",), "mask_root": tmp_path}
    async with open_app(tmp_path / "e", **settings) as app:
        for method, path in all_routes(app):
            admin = path in ("/v1/load_mask", "/v1/unload_mask")
            for key, expected in (("one", not admin), ("two", not admin), ("admin", admin)):
                answer = await call(app, method, path, key)
                if path in PATHS:
                    assert answer.status_code == 200
                else:
                    assert (answer.status_code != 401) is expected, (path, key)


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Bearer ONE", "Bearer one two", "Basic one", "one", "Bearer \xff"],
)
async def test_what_is_no_key(tmp_path: Path, header: str) -> None:
    async with open_app(tmp_path, **KEYS) as app:
        answer = await app.client.get(
            "/v1/models", headers={"authorization": header.encode("latin1")}
        )
        assert answer.status_code == 401


async def test_a_key_is_checked_before_the_body(tmp_path: Path) -> None:
    async with open_app(tmp_path, **KEYS) as app:
        answer = await app.client.post("/v1/completions", content=b"{not json")
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1/models?x=/health", "/health/../v1/models", "/v1/models/..%2fhealth"],
)
async def test_no_spelling_of_a_path_passes_the_key(tmp_path: Path, path: str) -> None:
    async with open_app(tmp_path, **KEYS) as app:
        headers = {"host": "x/health?"}
        answer = await app.client.get(path, headers=headers)
        assert answer.status_code in (401, 404)


def test_routes_are_guarded_by_construction(tmp_path: Path) -> None:
    """A route added without a guard would be open: only the probes may be such."""
    from serving.api import (
        admin,
        chat,
        completions,
        health,
        metrics,
        models,
        page,
        responses,
        tokenize,
    )

    for module in (admin, chat, completions, metrics, models, responses, tokenize):
        assert all(isinstance(route, ApiRoute) for route in module.router.routes)
    assert {route.path for route in health.router.routes} == set(PATHS)
    assert {route.path for route in page.router.routes} == {"/", "/page/{name}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": ("",)}, "empty"),
        ({"api_key": ("a", " ")}, "empty"),
        ({"admin_api_key": ("a",)}, "together"),
        ({"mask_root": Path("/")}, "together"),
        ({"admin_api_key": ("a",), "mask_root": Path("/nowhere")}, "not a folder"),
        ({"admin_api_key": ("a",), "api_key": ("a",), "mask_root": Path("/")}, "differ"),
        ({"api_key_file": Path("/nowhere")}, "api_key_file is unreadable"),
        ({"admin_api_key_file": Path("/dev/null"), "mask_root": Path("/")}, "holds no key"),
        ({"allowed_origins": ("example.org",)}, "no origin"),
        ({"allowed_origins": ("https://example.org/",)}, "no origin"),
        ({"max_waiting": 4}, "never be admitted"),
        ({"served_model_name": "a:b"}, "pattern"),
        ({"port": 70000}, "65535"),
        ({"max_wating": 3}, "not permitted"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServerSettings(directory=tmp_path, **settings)


@pytest.mark.parametrize("key", ["cl\u00e9", "a\tb"])
def test_keys_that_no_request_could_be_sure_to_match_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII"):
        ServerSettings(directory=tmp_path, api_key=("good", key))


def test_spaces_and_byte_order_marks_around_keys_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("third\n", encoding="utf-8-sig")
    monkeypatch.setenv("SERVING_API_KEY", "first, second ")
    settings = ServerSettings(directory=tmp_path, api_key_file=file)
    assert [k.get_secret_value() for k in settings.api_key] == ["first", "second", "third"]


def test_settings_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"API_KEY": "a,b", "MAX_WAITING": "300", "DIRECTORY": tmp_path}.items():
        monkeypatch.setenv(f"SERVING_{name}", str(value))
    settings = ServerSettings()
    assert [key.get_secret_value() for key in settings.api_key] == ["a", "b"]
    assert settings.max_waiting == 300
    assert "a" not in repr(settings.api_key[0])
    monkeypatch.setitem(os.environ, "SERVING_API_KEY", "")
    with pytest.raises(ValidationError, match="empty"):
        ServerSettings()


async def test_keys_from_a_file_open_as_others_do(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("from-file\n\n  second \n")
    async with open_app(tmp_path / "e", api_key=("typed",), api_key_file=file) as app:
        for key, status in {"typed": 200, "from-file": 200, "second": 200, "other": 401}.items():
            assert (await call(app, "GET", "/v1/models", key)).status_code == status


def test_a_file_of_keys_closes_the_server_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    settings = ServerSettings(directory=tmp_path, api_key_file=file)
    assert [key.get_secret_value() for key in settings.api_key] == ["one"]
    with pytest.raises(ValidationError, match="must differ"):
        ServerSettings(
            directory=tmp_path, api_key=("one",), admin_api_key_file=file, mask_root=tmp_path
        )


@pytest.fixture
async def admin_app(tmp_path: Path):
    root = tmp_path / "masks"
    root.mkdir()
    (root / "good.safetensors").write_text("mask")
    (root / "bad.safetensors").write_text("other")
    (tmp_path / "outside.safetensors").write_text("mask")
    (root / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (root / "folder").mkdir()
    async with open_app(tmp_path / "engine", admin_api_key=("admin",), mask_root=root) as opened:
        opened.client.headers["authorization"] = "Bearer admin"
        yield opened


async def test_a_mask_is_loaded_used_and_unloaded(admin_app: App) -> None:
    load = {"mask_name": "new", "mask_path": "good.safetensors"}
    answer = await admin_app.client.post("/v1/load_mask", json=load)
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == "new"
    body = {**BODIES["/v1/completions"], "model": "tiny:new"}
    assert (await admin_app.client.post("/v1/completions", json=body)).status_code == 200
    metrics = (await admin_app.client.get("/metrics")).text
    assert 'model_name="tiny:new"' in metrics

    again = await admin_app.client.post("/v1/load_mask", json=load)
    assert again.status_code == 400
    assert again.json()["error"]["param"] == "mask_name"

    gone = await admin_app.client.post("/v1/unload_mask", json={"mask_name": "new"})
    assert gone.json() == {"unloaded": "new"}
    assert (await admin_app.client.post("/v1/completions", json=body)).status_code == 404
    metrics = (await admin_app.client.get("/metrics")).text
    assert "tiny:new" not in metrics
    twice = await admin_app.client.post("/v1/unload_mask", json={"mask_name": "new"})
    assert twice.status_code == 404
    assert twice.json()["error"]["code"] == "mask_not_found"


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "link.safetensors",
        "folder",
        "missing.safetensors",
        "folder/../../outside.safetensors",
        "a\0b",
        ".",
        "x" * 1024,
    ],
)
async def test_mask_paths_stay_in_their_folder(admin_app: App, path: str) -> None:
    body = {"mask_name": "new", "mask_path": path}
    answer = await admin_app.client.post("/v1/load_mask", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "mask_path"
    assert "must name a mask file inside" in error["message"], "the same answer for every reason"
    assert "new" not in admin_app.engine.masks


@pytest.mark.parametrize("instead", ["pipe", "folder", "link", "nothing"])
async def test_what_took_the_place_of_a_mask_is_not_opened(
    admin_app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    """Between the look at the path and the opening of the file."""
    file = tmp_path / "masks" / "good.safetensors"
    open_file = os.open

    def replace_and_open(path: Path, flags: int) -> int:
        file.unlink()
        match instead:
            case "pipe":
                os.mkfifo(file)
            case "folder":
                file.mkdir()
            case "link":
                file.symlink_to(tmp_path / "outside.safetensors")
        return open_file(path, flags)

    monkeypatch.setattr(admin.os, "open", replace_and_open)
    body = {"mask_name": "new", "mask_path": "good.safetensors"}
    answer = await admin_app.client.post("/v1/load_mask", json=body)
    assert answer.status_code == 400
    assert "must name a mask file inside" in answer.json()["error"]["message"]
    assert "new" not in admin_app.engine.masks


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/srv/m/law: no", "law: no"),
        (
            "[Errno 13] Permission denied: '/srv/m/a b/law'",
            "[Errno 13] Permission denied: 'a b/law'",
        ),
        ("it is not in /srv/m.", "it is not in the mask folder."),
        ("in /srv/m; name it", "in the mask folder; name it"),
        ("/srv/mask and /srv/m.old", "/srv/mask and /srv/m.old"),
        ("/old/srv/m/law", "/old/srv/m/law"),
    ],
)
def test_folders_are_left_out_of_messages(message: str, told: str) -> None:
    assert without_folder(message, Path("/srv/m"), "the mask folder") == told


@pytest.mark.parametrize("name", ["", "a:b", "../a", "a/b", "a b", ".a", "a" * 65, "a\n"])
async def test_mask_names_are_plain(admin_app: App, name: str) -> None:
    body = {"mask_name": name, "mask_path": "good.safetensors"}
    answer = await admin_app.client.post("/v1/load_mask", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "mask_name"


async def test_no_mask_is_called_dense(admin_app: App) -> None:
    body = {"mask_name": "dense", "mask_path": "good.safetensors"}
    answer = await admin_app.client.post("/v1/load_mask", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("mask_name", "invalid_mask")
    assert "dense" not in admin_app.engine.masks


async def test_what_the_engine_refuses_is_told(admin_app: App) -> None:
    body = {"mask_name": "new", "mask_path": "bad.safetensors"}
    answer = await admin_app.client.post("/v1/load_mask", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_mask"
    # Where the folder lies is nobody's business.
    told = "bad.safetensors is not a mask file; look at the others in the mask folder"
    assert error["message"] == told
    answer = await admin_app.client.post("/v1/unload_mask", json={"mask_name": "general"})
    assert answer.status_code == 400
    assert "default" in answer.json()["error"]["message"]


async def test_head_answers_as_get_without_a_body(tmp_path: Path) -> None:
    async with open_app(tmp_path, **KEYS) as app:
        for path in (*PATHS, "/metrics"):
            for headers in ({}, {"authorization": "Bearer one"}):
                get = await app.client.get(path, headers=headers)
                head = await app.client.head(path, headers=headers)
                assert head.status_code == get.status_code
                assert head.headers["content-type"] == get.headers["content-type"]


async def test_probes_tell_a_dead_or_stalled_engine(app: App) -> None:
    for path in PATHS:
        assert (await app.client.get(path)).json() == {"status": "ok"}
    app.engine.stalled_for = 61.0
    for path in PATHS:
        answer = await app.client.get(path)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_stalled"
    app.engine.dead = True
    for path in PATHS:
        answer = await app.client.get(path)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
    assert "twofour:engine_up" in (await app.client.get("/metrics")).text


async def test_probes_tell_what_a_request_found_out(app: App) -> None:
    """An engine need not know that it is dead until it is asked to work."""
    body = {**BODIES["/v1/completions"], "prompt": "DEAD"}
    assert (await app.client.post("/v1/completions", json=body)).status_code == 503
    for path in PATHS:
        assert (await app.client.get(path)).json()["error"]["code"] == "engine_dead"


async def test_draining_is_unready_but_alive(app: App) -> None:
    app.app.state.admission.draining = True
    assert (await app.client.get("/readyz")).status_code == 503
    assert (await app.client.get("/livez")).status_code == 200
    answer = await app.client.post("/v1/completions", json=BODIES["/v1/completions"])
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert answer.headers["retry-after"]
    assert (await app.client.get("/metrics")).status_code == 200


async def test_the_app_closes_its_engine(tmp_path: Path) -> None:
    async with open_app(tmp_path) as app:
        assert not app.engine.closed
    assert app.engine.closed


async def test_no_request_runs_under_a_mask_that_took_its_name(admin_app: App) -> None:
    """The mask is replaced while the prompt is tokenized."""
    prompts = admin_app.app.state.service.prompts
    completion, reached, go_on = prompts.completion, asyncio.Event(), asyncio.Event()

    async def slow_completion(*args, **kwargs):
        reached.set()
        await go_on.wait()
        return await completion(*args, **kwargs)

    prompts.completion = slow_completion
    body = {**BODIES["/v1/completions"], "model": "tiny:french"}
    request = asyncio.create_task(admin_app.client.post("/v1/completions", json=body))
    await reached.wait()
    unload = {"mask_name": "french"}
    assert (await admin_app.client.post("/v1/unload_mask", json=unload)).status_code == 200
    admin_app.engine.masks["french"] = replace(
        admin_app.engine.masks["general"], name="french", digest=digest_of("another french")
    )
    go_on.set()
    answer = await request
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "mask_replaced"
    assert not admin_app.engine.requests
    assert admin_app.app.state.admission.in_flight == 0
