# CPU:  docker build -t cocu-jax .
# TPU:  docker build -t cocu-jax:tpu --build-arg EXTRA=tpu .
# GPU:  docker build -t cocu-jax:cuda --build-arg EXTRA=cuda .
#
# docker run --rm -v "$PWD:/data" cocu-jax segment photo.jpg --classes "dog, grass, sky" --output masks
FROM python:3.12-slim

ARG EXTRA=""

# Requirements first: their layer is rebuilt only when they change.
WORKDIR /opt/cocu-jax
COPY requirements.txt pyproject.toml README.md LICENSE NOTICE ./
RUN pip install --no-cache-dir -r requirements.txt \
    && case "$EXTRA" in \
        "") ;; \
        tpu) pip install --no-cache-dir "jax[tpu]" ;; \
        cuda) pip install --no-cache-dir "jax[cuda13]" ;; \
        *) echo "EXTRA=$EXTRA: choose tpu, cuda or nothing" >&2; exit 1 ;; \
    esac

COPY . .
RUN pip install --no-cache-dir --no-deps .

WORKDIR /data
ENTRYPOINT ["cocu"]
CMD ["--help"]
