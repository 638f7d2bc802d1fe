# lorafast in a container, which writes as the user who starts it:
#   docker build -t lorafast . && docker run --user "$(id -u)" -v "$PWD:/data" lorafast finetune --run first ...
FROM python:3.13-slim AS build
# Debian's newest of each: what is pinned is no longer there after the next security update.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --wheel-dir /wheels '/src[hub]'

FROM python:3.13-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# No version: there is one, the one just built.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels 'lorafast[hub]' && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["lorafast"]
