# syntax=docker/dockerfile:1
# docker build -t twofour .                                      CPU server
# docker run -v "$PWD/demo/engines/sparse:/engine:ro" -p 8000:8000 twofour
# docker build --target tensorrt-llm -t twofour-trtllm .         build and serve GPU engines

FROM python:3.12-slim-bookworm AS wheel
# Debian drops superseded versions from its archive, so a pinned version soon fails to install.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY maskgen maskgen
COPY engines engines
COPY evaluation evaluation
COPY serving serving
COPY loadtests loadtests
COPY benchmarks benchmarks
COPY twofour twofour
COPY masks masks
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# TensorRT's engine backend ends with TensorRT-LLM 1.2; later images cannot build these engines.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1 AS tensorrt-llm
COPY --from=wheel /wheels /wheels
RUN python3 -m venv --system-site-packages /opt/twofour \
    && /opt/twofour/bin/pip install --no-cache-dir /wheels/*.whl
ENV PATH=/opt/twofour/bin:$PATH SERVING_HOST=0.0.0.0
VOLUME /engine
EXPOSE 8000
ENTRYPOINT ["twofour"]
CMD ["serve", "/engine"]

FROM python:3.12-slim-bookworm AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 twofour
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -rf /wheels
# By number, so that an orchestrator can check that it is not root.
USER 10001
ENV SERVING_HOST=0.0.0.0 SERVING_PORT=8000
VOLUME /engine
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["twofour"]
CMD ["serve", "/engine"]
