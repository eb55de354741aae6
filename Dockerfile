# 一锤定音 in an image: the menu with `docker run -it IMAGE`, a verb with `docker run IMAGE demo --yes`.
#
#   docker build .                  CPU
#   docker build --target cuda .    the training environment for CUDA, and engines in environments of their own
#   --build-arg ENGINES="vllm sglang"   which engines; none: ENGINES=
#   --build-arg BASE=debian@sha256:…   pins the base
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian's own fixes are wanted: the base pins the release, and what runs is pinned by the locks.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv tini \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/yichuidingyin
COPY --chmod=755 yichuidingyin.sh ./
COPY locks ./locks

FROM system AS cpu-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    YCDY_LOCK=cpu YCDY_ENV=/opt/yichuidingyin/.venv ./yichuidingyin.sh --prepare

FROM system AS cuda-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    YCDY_LOCK=cuda YCDY_ENV=/opt/yichuidingyin/.venv ./yichuidingyin.sh --prepare

FROM system AS engines
ARG ENGINES=vllm
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir engines \
 && for engine in ${ENGINES}; do \
      YCDY_LOCK="${engine}" YCDY_ENV="/opt/yichuidingyin/engines/${engine}" ./yichuidingyin.sh --prepare || exit; \
    done

FROM system AS application
COPY docker/healthcheck.py ./docker/
COPY recipes ./recipes
COPY toolbox ./toolbox
# Any user may run it, with a read-only root: /root can be entered, and whatever is written goes to the volume.
RUN python3 -m compileall -q toolbox \
 && ln -s /opt/yichuidingyin/yichuidingyin.sh /root/yichuidingyin.sh \
 && chmod 755 /root \
 && install -d -m 1777 /data
ENV LANG=C.UTF-8 \
    HOME=/data \
    YCDY_HOME=/data \
    YCDY_ENV=/opt/yichuidingyin/.venv \
    YCDY_ENGINES=/opt/yichuidingyin/engines
VOLUME /data
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["env", "PYTHONPATH=/opt/yichuidingyin", "/opt/yichuidingyin/.venv/bin/python", "-P", "/opt/yichuidingyin/docker/healthcheck.py"]
ENTRYPOINT ["tini", "--", "/root/yichuidingyin.sh"]

FROM application AS cuda
# Engines build kernels when they start.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=cuda-environment /opt/yichuidingyin/.venv /opt/yichuidingyin/.venv
COPY --from=engines /opt/yichuidingyin/engines /opt/yichuidingyin/engines

FROM application AS cpu
COPY --from=cpu-environment /opt/yichuidingyin/.venv /opt/yichuidingyin/.venv
