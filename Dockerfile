# CPU:  docker build -t cocu-jax .
# TPU:  docker build -t cocu-jax:tpu --build-arg EXTRA=tpu .
# GPU:  docker build -t cocu-jax:cuda --build-arg EXTRA=cuda .
# The others of pyproject.toml: EXTRA=app for `cocu app`, EXTRA=cluster for a Dask cluster.
#
# docker run --rm -v "$PWD:/data" cocu-jax segment photo.jpg --classes "dog, grass, sky" --output masks
FROM python:3.12-slim

ARG EXTRA=""

# Requirements first: their layer is rebuilt only when they change.
WORKDIR /opt/cocu-jax
COPY requirements.txt pyproject.toml README.md LICENSE NOTICE ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = {'': []} | project['optional-dependencies']; print(*extras['$EXTRA'], sep='\n')" > extra.txt \
    || { echo "EXTRA=$EXTRA: choose an extra of pyproject.toml" >&2; exit 1; } \
    && pip install --no-cache-dir -r requirements.txt -r extra.txt

COPY . .
RUN pip install --no-cache-dir --no-deps .

WORKDIR /data
ENTRYPOINT ["cocu"]
CMD ["--help"]
