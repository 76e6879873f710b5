"""Which errors of vLLM are the request's fault."""

from __future__ import annotations

from engines.errors import EngineDeadError, InvalidRequestError


def as_engine_error(error: BaseException) -> BaseException:
    """An error of vLLM as one of `engines.errors`, if it has a counterpart there.

    Only what vLLM raises to refuse a request becomes `InvalidRequestError`. Any other ValueError is
    a fault of vLLM or of this plugin, and stays what it is.
    """
    from vllm.exceptions import VLLMClientError, VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

    if isinstance(error, VLLMClientError | VLLMValidationError):
        return InvalidRequestError(str(error), getattr(error, "parameter", None))
    if isinstance(error, VllmDeadError):
        return EngineDeadError("vLLM's engine has died; see its log")
    return error
