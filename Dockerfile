# The environment of conda.yaml with the code inside: docker build -t ocmlflow . ; docker run ocmlflow train --help
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# GDAL reads the system's certificates, its Python wheel has none.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet

WORKDIR /app
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > /tmp/requirements.txt && pip install --no-cache-dir -r /tmp/requirements.txt && rm /tmp/requirements.txt
COPY MLproject conda.yaml ./
COPY ocmlflow ocmlflow
COPY entrypoints entrypoints

# A user without rights, who owns the folder that runs and results go to.
RUN useradd --create-home --uid 1000 user && chown user /app
USER user
ENTRYPOINT ["/bin/sh", "-c", "verb=\"$1\" && shift && exec python -m \"entrypoints.$verb\" \"$@\"", "ocmlflow"]
CMD ["main"]
