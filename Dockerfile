# All that ocmlflow needs, pinned, and its code; for CPUs, or with CUDA's libraries for NVIDIA GPUs (the driver is the host's):
#   docker build -t localhost/ocmlflow .
#   docker build -t localhost/ocmlflow --build-arg REQUIREMENTS=requirements-gpu.txt .
#   docker run localhost/ocmlflow python -m entrypoints.train --help
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GIT_PYTHON_REFRESH=quiet
ARG REQUIREMENTS=requirements.txt
COPY ${REQUIREMENTS} /opt/requirements.txt
RUN pip install --no-cache-dir -r /opt/requirements.txt

# The code is found from every working directory: that of a pod is a volume, and MLflow sets its own.
ENV PYTHONPATH=/app
COPY MLproject conda.yaml /app/
COPY ocmlflow /app/ocmlflow
COPY entrypoints /app/entrypoints

# A user without rights, in a folder of its own for runs, results and files in the making.
RUN useradd --create-home --uid 1000 user && install -d -o user -g user /work
USER 1000
WORKDIR /work
CMD ["python", "-m", "entrypoints.main"]
