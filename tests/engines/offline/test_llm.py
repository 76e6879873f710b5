"""`twofour.LLM`: batches, masks, outputs, and every way to call it wrongly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.directory.build import BuildRequest
from engines.errors import (
    EngineDeadError,
    EngineDirectoryError,
    EngineError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
    PromptTooLongError,
    UnknownMaskError,
)
from engines.offline import llm as module
from engines.offline.llm import LLM
from engines.offline.outputs import RequestOutput
from engines.registry import run_builder
from engines.sampling import SamplingParams, StructuredOutput
from tests.serving.fake_engine import FakeEngine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPTS = ["The river carried the timber", "Deux hommes", "def add(left", "In winter"]
TALK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def directory(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    mask_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("offline") / str(request.param)
    masks = {"general": mask_of(tiny_model), "french": mask_of(tiny_model, 1)}
    run_builder(request.param, BuildRequest(tiny_model, "tiny", masks, out))
    return out


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with LLM(directory) as opened:
        yield opened


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LLM, FakeEngine]]:
    engine = FakeEngine(tmp_path)
    monkeypatch.setattr(module, "open_engine", lambda directory: engine)
    with LLM("anything") as opened:
        yield opened, engine


def tokens(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_a_batch_answers_as_its_prompts_do_alone(llm: LLM) -> None:
    masks = ["general", "french", None, "french"]
    alone = [llm.generate(p, GREEDY, mask=m)[0] for p, m in zip(PROMPTS, masks, strict=True)]
    together = llm.generate(PROMPTS, GREEDY, mask=masks)
    assert tokens(together) == tokens(alone)
    assert [output.prompt for output in together] == PROMPTS
    assert [output.mask for output in together] == ["general", "french", "general", "french"]
    assert tokens(together) != tokens(llm.generate(PROMPTS, GREEDY))


def test_prompts_are_text_or_token_ids(llm: LLM) -> None:
    ids = llm.codec.encode(PROMPTS[0])
    (text,) = llm.generate(PROMPTS[0], GREEDY)
    for prompts in (ids, [ids], [np.array(ids, np.int32).tolist()], [list(np.array(ids))]):
        (output,) = llm.generate(prompts, GREEDY)
        assert output.prompt is None
        assert output.prompt_token_ids == text.prompt_token_ids == tuple(ids)
        assert output.outputs == text.outputs
    assert llm.generate([], GREEDY) == []


def test_outputs_say_how_an_answer_came_about(llm: LLM) -> None:
    params = replace(GREEDY, n=2, temperature=1.0, seed=3, logprobs=2, prompt_logprobs=0)
    (output,) = llm.generate(PROMPTS[0], params)
    assert [answer.index for answer in output.outputs] == [0, 1]
    assert output.outputs[0].token_ids != output.outputs[1].token_ids
    for answer in output.outputs:
        assert answer.finish_reason == "length"
        assert answer.text == llm.codec.decode(answer.token_ids)
        assert answer.logprobs is not None
        assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
        assert all(len(entry.top) == 2 for entry in answer.logprobs)
        assert answer.cumulative_logprob == sum(entry.logprob for entry in answer.logprobs) < 0
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    plain = llm.generate(PROMPTS[0], GREEDY)[0]
    assert plain.outputs[0].logprobs is plain.outputs[0].cumulative_logprob is None
    assert plain.prompt_logprobs is None


def test_every_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text
    stop = whole[3:5]
    outputs = llm.generate(
        [PROMPTS[0]] * 3,
        [GREEDY, replace(GREEDY, stop=stop), replace(GREEDY, max_tokens=1)],
    )
    texts = [output.outputs[0] for output in outputs]
    assert texts[0].text == whole
    assert (texts[1].text, texts[1].stop_reason) == (whole[: whole.index(stop)], stop)
    assert len(texts[2].token_ids) == 1


def test_constraints_hold(llm: LLM) -> None:
    params = SamplingParams(seed=1, structured=StructuredOutput("regex", "[0-9]{3}"))
    (output,) = llm.generate("Say it", params)
    assert re.fullmatch("[0-9]{3}", output.outputs[0].text)
    assert output.outputs[0].finish_reason == "stop"


def test_chat_writes_the_template(llm: LLM) -> None:
    other = [{"role": "system", "content": "Be short."}, *TALK]
    one, two = llm.chat([TALK, other], GREEDY, mask="french")
    assert one.prompt == llm.codec.render_chat(TALK)
    assert one.prompt_token_ids == tuple(llm.codec.encode(one.prompt, add_special_tokens=False))
    assert two.prompt == llm.codec.render_chat(other)
    assert llm.chat(TALK, GREEDY, mask="french")[0].outputs == one.outputs
    assert llm.generate([list(one.prompt_token_ids)], GREEDY, mask="french")[0].outputs == (
        one.outputs
    )


def test_masks_come_and_go(llm: LLM, tiny_model: Path, mask_of: Callable[..., Path]) -> None:
    assert [mask.name for mask in llm.describe().masks] == ["general", "french"]
    info = llm.load_mask("late", mask_of(tiny_model, 2))
    assert info.name == "late"
    late = llm.generate(PROMPTS, GREEDY, mask="late")
    assert tokens(late) != tokens(llm.generate(PROMPTS, GREEDY))
    llm.unload_mask("late")
    with pytest.raises(UnknownMaskError, match="late"):
        llm.generate(PROMPTS, GREEDY, mask="late")
    with pytest.raises(MaskError):
        llm.unload_mask("general")


async def test_it_may_be_called_where_an_event_loop_runs(llm: LLM) -> None:
    assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_a_batch_may_be_longer_than_the_engines_queue(
    target: str, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    run_builder(target, BuildRequest(tiny_model, "tiny", {"general": mask_of(tiny_model)}, out))
    limits = {"cpu": {"max_waiting": 2, "max_sequences": 2}, "reference": {"max_requests": 2}}
    prompts = [[5 + i, 6, 7, 8] for i in range(24)]
    with LLM(out) as roomy:
        expected = tokens(roomy.generate(prompts, GREEDY))
    with LLM(out, **limits[target]) as tight:
        results: dict[int, list[tuple[int, ...]]] = {}

        def ask(half: int) -> None:
            results[half] = tokens(tight.generate(prompts[half::2], GREEDY))

        threads = [threading.Thread(target=ask, args=(half,)) for half in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert results == {0: expected[0::2], 1: expected[1::2]}
        if target == "cpu":
            with pytest.raises(EngineOverloadedError, match="at most 2"):
                tight.generate(prompts[0], replace(GREEDY, n=3))


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        (["fine", ""], {}, InvalidRequestError, "prompt is empty"),
        (["fine", [5] * 600], {}, PromptTooLongError, "600 tokens"),
        (["fine", [10**6]], {}, InvalidRequestError, "1000000"),
        (["fine", None], {}, InvalidRequestError, "prompt 2 is None"),
        (["fine", b"x"], {}, InvalidRequestError, "prompt 2 is b'x'"),
        (b"fine", {}, InvalidRequestError, "prompt 1 is b'fine'"),
        ({"prompt_token_ids": [5]}, {}, InvalidRequestError, "expected text or a list of token"),
        ([5, "x"], {}, InvalidRequestError, "expected text or a list of token ids"),
        ("fine", {"mask": "german"}, UnknownMaskError, "german"),
        ("fine", {"mask": ["french"] * 2}, InvalidRequestError, "1 prompts came with 2 of mask"),
        ("fine", {"mask": [3]}, InvalidRequestError, "mask 3 is of type int"),
        ("fine", {"sampling_params": [GREEDY] * 2}, InvalidRequestError, "2 of sampling_params"),
        ("fine", {"sampling_params": []}, InvalidRequestError, "0 of sampling_params"),
        ("fine", {"sampling_params": {"n": 1}}, InvalidRequestError, "is of type dict"),
    ],
)
def test_what_cannot_run(
    llm: LLM, prompts: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        llm.generate(prompts, **{"sampling_params": GREEDY, **options})
    if error is PromptTooLongError:
        assert caught.value.__notes__ == ["prompt 2 of 2"]
    assert llm.generate("fine", GREEDY), "and harms no later call"


@pytest.mark.parametrize(
    "messages",
    [["Hello"], "Hello", [{"role": "user"}], [{"role": "user", "content": 5}], [[{"x": "y"}]]],
)
def test_what_is_no_conversation(llm: LLM, messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match="texts as its role and its content"):
        llm.chat(messages, GREEDY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1.0}, "n must be an integer, got 1.0"),
        ({"n": True}, "n must be an integer, got True"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer or None"),
        ({"stop": [5]}, "stop must be strings"),
        ({"stop": ""}, "stop must be strings that are not empty"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be integers"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias must be keyed by integers"),
    ],
)
def test_parameters_of_the_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        SamplingParams(**options)


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[3]).stop_token_ids == (3,)


def test_a_failing_prompt_ends_the_batch(fake: tuple[LLM, FakeEngine]) -> None:
    llm, engine = fake
    with pytest.raises(EngineError, match="the engine failed: secret") as caught:
        llm.generate(["HANG", "FAIL"], replace(GREEDY, max_tokens=9))
    assert caught.value.__notes__ == ["prompt 2 of 2"]
    assert engine.running == {}


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """A shell starts background processes with the signal ignored, which they inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_an_interruption_aborts_what_runs(fake: tuple[LLM, FakeEngine]) -> None:
    llm, engine = fake

    def interrupt() -> None:
        while len(engine.running) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["HANG", "HANG"])
    while engine.running:
        time.sleep(0.01)
    assert llm.generate("fine", GREEDY)


def test_a_closed_llm_says_so(directory: Path) -> None:
    with LLM(directory) as llm:
        pass
    llm.close()
    with pytest.raises(EngineDeadError, match="this LLM is closed"):
        llm.generate("x")
    with pytest.raises(EngineDeadError, match="this LLM is closed"):
        llm.describe()


def test_what_cannot_be_opened(directory: Path, tiny_model: Path) -> None:
    before = threading.active_count()
    with pytest.raises(EngineDirectoryError, match="`twofour build` makes one"):
        LLM(tiny_model)
    with pytest.raises(ValueError, match="has no option 'tensor'"):
        LLM(directory, tensor=2)
    with pytest.raises(ValueError, match="verify is 'perhaps': must be a valid boolean"):
        LLM(directory, verify="perhaps")
    assert threading.active_count() == before


@pytest.mark.parametrize("directory", ["cpu"], indirect=True)
def test_a_program_may_end_without_closing(directory: Path) -> None:
    script = (
        "import sys; from twofour import LLM, SamplingParams; llm = LLM(sys.argv[1]);"
        "print(len(llm.generate('x', SamplingParams(max_tokens=3, ignore_eos=True))"
        "[0].outputs[0].token_ids)); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert "Traceback" not in done.stderr
