"""`build.sh`: the commands that turn the checkpoints of a directory into engines.

It is what `twofour build` itself runs where TensorRT-LLM and a GPU are present, and what is left
to the user elsewhere. An engine appears under its name only when it is complete, so the script can
be killed and run again.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from engines.tensorrt_llm.commands import BuildOptions, build_command, refit_command
from engines.tensorrt_llm.record import (
    CHECKPOINTS,
    ENGINES,
    LOGS,
    PLAN,
    SCRIPT_FILE,
    TIMING_CACHE,
    BuildRecord,
)
from engines.tensorrt_llm.version import EXIT_TOOLS_MISSING, TARGET_VERSION
from maskgen.format.atomic_file import atomic_writer

_HEAD = f"""\
#!/usr/bin/env bash
# Builds the TensorRT-LLM engines of this directory from its checkpoints.
#
# Needs TensorRT-LLM {TARGET_VERSION} (any 1.2.x; later lines have no TensorRT backend) and a GPU
# with sparse tensor cores (compute capability 8.0 or higher). Engines run only on the architecture
# they were built on. Finished engines are kept when the script runs again.
# TIMING_CACHE names a file of kernel timings to share with other builds; PYTHON the interpreter.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
python=${{PYTHON:-python3}}
cache=${{TIMING_CACHE:-{TIMING_CACHE}}}

fail() {{
    echo "build.sh: failed, see $PWD/$1" >&2
    exit 1
}}

version=$("$python" -c 'import importlib.metadata as m; print(m.version("tensorrt_llm"))' \\
    2>/dev/null || true)
case "$version" in
1.2.*) ;;
*)
    echo "build.sh: needs TensorRT-LLM 1.2.x, found ${{version:-none}}" >&2
    exit {EXIT_TOOLS_MISSING}
    ;;
esac
trap 'rm -rf .*.partial {ENGINES}/.*.partial "$cache.$$"' EXIT
mkdir -p {ENGINES} {LOGS}
"""

_STEP = """
if [ ! -d {final} ]; then
    echo "{title} (log: {log})"
    rm -rf {partial}
    {command} \\
        > {log} 2>&1 || fail {log}
{after}    mv {partial} {final}
fi
"""

_KEEP_CACHE = """\
    if [ -f "$cache.$$" ]; then mv "$cache.$$" "$cache"; fi
"""

_TAIL = """
if [ "${1:-}" = --no-record ]; then exit 0; fi
# Reads the logs and writes the eligible and chosen layers into engine.json. (-P: `engines` is also
# the name of a folder here.)
if ! "$python" -P -c 'import engines.tensorrt_llm' 2>/dev/null; then
    echo "build.sh: the engines are built; to finish, install twofour for $python and run" >&2
    echo "    $python -P -m engines.tensorrt_llm.build --record $PWD" >&2
    exit 3
fi
"$python" -P -m engines.tensorrt_llm.build --record .
"""


def build_script(record: BuildRecord) -> str:
    """The text of `build.sh`."""
    names, options = list(record.engines), record.options
    if record.per_mask == "engine":
        steps = [_build_step(name, f"{ENGINES}/{name}", name, options) for name in names]
    else:
        # Any mask's weights do for a stripped plan; real 2:4 ones are what makes it sparse.
        steps = [_build_step(PLAN, PLAN, names[0], replace(options, strip_plan=True))]
        steps += [_refit_step(name) for name in names]
    return _HEAD + "".join(steps) + _TAIL


def write_script(directory: Path, record: BuildRecord) -> None:
    """Write `build.sh`, executable, whole or not at all."""
    with atomic_writer(directory / SCRIPT_FILE) as file:
        file.write(build_script(record).encode())
        os.fchmod(file.fileno(), 0o755)


def engine_steps(record: BuildRecord) -> list[tuple[str, str]]:
    """(log name, directory) of every step of the script, in order."""
    plan = [(PLAN, PLAN)] if record.per_mask == "refit" else []
    return plan + [(name, f"{ENGINES}/{name}") for name in record.engines]


def partial_name(final: str) -> str:
    """Where a step builds `final` before it is complete."""
    folder, _, name = final.rpartition("/")
    return f"{folder}/.{name}.partial" if folder else f".{name}.partial"


def _build_step(log: str, final: str, checkpoint: str, options: BuildOptions) -> str:
    command = build_command(f"{CHECKPOINTS}/{checkpoint}", partial_name(final), options)
    text = f'{_quote(command)} --input_timing_cache "$cache" --output_timing_cache "$cache.$$"'
    title = "building the stripped plan" if options.strip_plan else f"building {log}"
    return _step(title, text, log, final, _KEEP_CACHE)


def _refit_step(name: str) -> str:
    final = f"{ENGINES}/{name}"
    command = refit_command(PLAN, f"{CHECKPOINTS}/{name}", partial_name(final))
    return _step(f"refitting {name}", _quote(command), name, final, "")


def _step(title: str, command: str, log: str, final: str, after: str) -> str:
    return _STEP.format(
        title=title,
        command=command,
        log=f"{LOGS}/{log}.log",
        final=final,
        partial=partial_name(final),
        after=after,
    )


def _quote(command: list[str]) -> str:
    """One flag a line; names of masks need no quotes, extra arguments may."""
    lines: list[str] = []
    for word in map(shlex.quote, command):
        if word.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n        ".join(lines)
