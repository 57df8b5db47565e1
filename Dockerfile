# An image with GPU support: torch from PyPI is the CUDA build. README has the lines to build and run it.
FROM python:3.12-slim
# A C compiler for Triton's kernels, pdsh and ssh for several machines.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev pdsh openssh-client \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/megadeberta
COPY . .
# In the order of the Makefile: DeepSpeed's build looks at the torch that is installed.
RUN pip install --no-cache-dir -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt setuptools wheel ninja \
    && pip install --no-cache-dir -c constraints.txt --no-build-isolation '.[tensorboard]'
WORKDIR /work
ENTRYPOINT ["megadeberta"]
