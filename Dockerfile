# lorafast in a container, which writes as the user who starts it:
#   docker build -t lorafast . && docker run --user "$(id -u)" -v "$PWD:/data" lorafast finetune --run first ...
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl huggingface_hub && rm -r /wheels && useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["lorafast"]
