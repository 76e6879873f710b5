"""Settings of the server: keyword arguments, environment variables `SERVING_*`, or a TOML file."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


def _split_keys(value: Any) -> Any:
    """Keys from the environment come as one string, separated by commas."""
    keys = value.split(",") if isinstance(value, str) else value
    plain = [_plain(key).strip() for key in keys]
    if not all(plain):
        # An empty variable must not quietly open the server to everybody.
        raise ValueError("an API key is empty; unset the variable to serve without keys")
    if any(not (key.isascii() and key.isprintable()) for key in plain):
        # Clients disagree on the bytes of others in a header: no request could be sure to match.
        raise ValueError("an API key has characters other than printable ASCII; choose another")
    return plain


def _keys_of(setting: str, path: Any) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting} is unreadable: {error}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"{setting} {path} holds no key; write one a line")
    return keys


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    if "config" in settings:
        raise ValueError(f"config {path} names another config; write its settings here")
    return settings


def _split_origins(value: Any) -> Any:
    origins = value.split(",") if isinstance(value, str) else value
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin; write scheme and host as https://example.org:8443, or *"
            )
    return origins


def _plain(key: Any) -> str:
    return key.get_secret_value() if isinstance(key, SecretStr) else str(key)


SECRET = ("api_key", "admin_api_key")
"""Settings whose values are never shown."""

Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_keys)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_origins)]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/,?#]+")


class ServerSettings(BaseSettings):
    """Everything the server can be told. Sizes are bytes and times are seconds."""

    model_config = SettingsConfigDict(env_prefix="SERVING_", extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments count before the environment, and that before the file."""
        path = init_settings().get("config") or os.environ.get("SERVING_CONFIG")
        file = InitSettingsSource(settings_cls, _read_file(path) if path else {})
        return init_settings, env_settings, file

    config: Path | None = Field(
        None,
        description="TOML file of settings, named as here; options and environment come before it.",
    )
    directory: Path = Field(description="Engine directory to serve.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port to listen on; 0 picks a free one, which the log names.",
    )
    served_model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$",
        description="What requests call the base model; without it, the name in engine.json.",
    )
    verify: bool = Field(
        True,
        description="Compare the SHA-256 of the directory's files with what was built, not their"
        " sizes alone.",
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the engine: `--engine-option NAME=VALUE`, or a JSON object in the"
        " environment.",
    )

    api_key: Keys = Field(
        (),
        description="Key that opens the API; none leaves it open to everybody. Better in"
        " SERVING_API_KEY than on the command line.",
    )
    api_key_file: Path | None = Field(
        None, description="File of further API keys, one a line; read once, at the start."
    )
    admin_api_key: Keys = Field(
        (), description="Key for the routes that load and unload masks; needs `mask_root`."
    )
    admin_api_key_file: Path | None = Field(
        None, description="File of further admin API keys, one a line."
    )
    mask_root: Path | None = Field(
        None, description="Folder from which masks may be loaded over HTTP; needs `admin_api_key`."
    )

    allowed_origins: Origins = Field(
        (),
        description="Web pages of other origins that may call this server, as https://host:port;"
        " * is every page.",
    )
    web_page: bool = Field(
        True, description="Serve the playground and status page at `/`; it needs no key by itself."
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="Request fields of no known API: refuse them, or log and ignore them. Fields"
        " that are known to change answers are refused either way.",
    )
    json_whitespace: Literal["fixed", "any"] = Field(
        "fixed",
        description="Layout of constrained JSON: fixed (one line), or any, with which weak models"
        " may write line breaks until their tokens are used up.",
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "json"] = Field(
        "auto",
        description="How the model writes calls of tools: hermes, llama3_json, mistral or json."
        " auto recognises it from the chat template.",
    )
    max_waiting: int = Field(
        256, ge=1, description="Choices that may wait for their first token; more get 429."
    )
    max_choices: int = Field(
        128, ge=1, description="Choices of one request: n times the number of prompts."
    )
    max_logprob_entries: int = Field(
        1 << 18,
        ge=1,
        description="Log-probs of one request: tokens of prompts and answers, times choices, times"
        " alternatives and one for the token itself; a stream's answer does not count.",
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body, in bytes.")
    max_mask_labels: int = Field(
        64,
        ge=1,
        description="Masks with time series of their own in `/metrics`; the others share the label"
        " `_other`.",
    )
    header_timeout: float = Field(
        20.0,
        gt=0,
        description="Seconds from the connection, or the first byte of a further request, to the"
        " end of its headers; a connection that says nothing is closed without a word.",
    )
    body_timeout: float = Field(
        60.0, gt=0, description="Seconds from there to the end of the body."
    )
    # Longer than the usual proxies keep idle connections, so that they close them and not we.
    idle_timeout: float = Field(
        75.0,
        gt=0,
        description="Seconds between an answer and the next request, and for clients that read"
        " nothing of an answer.",
    )
    keep_alive_interval: float = Field(
        15.0, gt=0, description="Seconds of silence after which a stream gets a comment line."
    )
    max_step_age: float = Field(
        60.0,
        gt=0,
        description="Seconds: probes fail when the engine has work and made no step for so long.",
    )
    shutdown_timeout: float = Field(
        25.0, ge=0, description="Seconds that running requests may go on after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages to log: debug, info, warning or error."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of the log: text for people, or JSON objects for programs."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Send traces to this OpenTelemetry collector (OTLP over HTTP), as"
        " http://host:4318/v1/traces; needs the extra `tracing`.",
    )
    access_log: bool = Field(
        False, description="Log method, route, status and request id of every request."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_keys_from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        keys = {
            name: (*_split_keys(given.get(name) or ()), *_keys_of(f"{name}_file", path))
            for name in SECRET
            if (path := given.get(f"{name}_file")) is not None
        }
        return given | keys

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """`port = true` in a file would be port 1."""
        if isinstance(value, bool) and info.field_name is not None:
            wanted = cls.model_fields[info.field_name].annotation
            if wanted is not bool and bool not in get_args(wanted):
                raise ValueError("must not be true or false")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> ServerSettings:
        if self.max_choices > self.max_waiting:
            raise ValueError(
                f"max_choices ({self.max_choices}) must not exceed max_waiting"
                f" ({self.max_waiting}): the largest request could never be admitted"
            )
        if bool(self.admin_api_key) != (self.mask_root is not None):
            raise ValueError(
                "admin_api_key and mask_root must be set together: the routes that load and"
                " unload masks need both a key and a folder"
            )
        if self.mask_root is not None and not self.mask_root.is_dir():
            raise ValueError(f"mask_root {self.mask_root} is not a folder")
        shared = {_plain(key) for key in self.api_key} & {_plain(k) for k in self.admin_api_key}
        if shared:
            raise ValueError("an admin API key must differ from every API key")
        return self
