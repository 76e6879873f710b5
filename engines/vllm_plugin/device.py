"""Which backend multiplies on this process's device."""

from __future__ import annotations

from vllm.platforms import current_platform

from engines.errors import EngineDirectoryError
from engines.vllm_plugin.backend import Backend, DeviceKernels


def select_backend() -> Backend:
    """The products of this process's device.

    Raises:
        EngineDirectoryError: twofour has no kernels for it.
    """
    if current_platform.is_cpu():
        from engines.vllm_plugin.cpu import CpuBackend

        return CpuBackend()
    if current_platform.is_cuda():
        from engines.vllm_plugin.cuda import CudaBackend

        return CudaBackend()
    raise EngineDirectoryError(
        f"twofour has no 2:4 kernels for {current_platform.device_name}; it runs on CPU and CUDA"
    )


def device_kernels() -> DeviceKernels:
    """What runs the sparse layers on this process's device.

    Raises:
        EngineDirectoryError: twofour has no kernels for it.
    """
    return select_backend().kernels()
