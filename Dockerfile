# Both commands in a container, as a user without privileges:
#   docker build --tag sb3_attn .
#   docker run --rm sb3_attn              # make demo
#   docker run --rm sb3_attn make test
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
# WORKDIR alone would make a folder of root's
RUN useradd --create-home user && install --directory --owner=user /sb3_attn
USER user
WORKDIR /sb3_attn

# The dependencies are a layer of their own, since they change less often than the code
COPY --chown=user pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY --chown=user sb3_attn/version.py sb3_attn/version.py
COPY --chown=user zoo_configs zoo_configs
RUN make .venv/.stamp
COPY --chown=user . .
CMD ["make", "demo"]
