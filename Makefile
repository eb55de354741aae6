# What a developer does here; `bash yichuidingyin.sh` alone is enough for everybody else.

PYTHON := .venv/bin/python -P
UV ?= uv
IMAGE ?= localhost/yichuidingyin:dev

.PHONY: setup test lint demo bench image locks messages docs

setup:  ## the environment, with what tests and linters need on top
	@bash yichuidingyin.sh --prepare dev

test: setup
	$(PYTHON) -m pytest -n 2

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck yichuidingyin.sh .ci/run
	.venv/bin/hadolint Dockerfile

demo:
	bash yichuidingyin.sh demo --yes

bench: setup
	$(PYTHON) bench/startup.py

image:
	../shared/tools/image build . $(IMAGE)

messages: setup  ## the catalogue brought up to date with the source, and compiled
	$(PYTHON) scripts/messages.py

docs: setup  ## the pages that are made from the code
	$(PYTHON) scripts/reference.py

# Needs uv. The CPU lock needs a folder (or index) that offers the CPU build of torch: pip's own setting, or LINKS=DIR.
LINKS ?= $(shell pip config get global.find-links 2>/dev/null)
COMPILE = $(UV) pip compile -q --python-version 3.11 --generate-hashes --only-binary :all: --no-annotate \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make locks"
LINUX = --python-platform x86_64-manylinux_2_28
# What vLLM and SGLang need has no wheels for an older glibc: Ubuntu 20.04's is 2.31, Debian 12's 2.36.
LINUX_2_31 = --python-platform x86_64-manylinux_2_31
LINUX_2_34 = --python-platform x86_64-manylinux_2_34

# Plain Python that is published as source only; yichuidingyin.sh builds it with setuptools of the same lock.
BUILT = $(addprefix --no-binary ,jieba langdetect rouge-score sqlitedict word2number zhconv)
# What ModelScope uploads to Alibaba's storage with, one of them in C: nothing is uploaded.
UPLOADS = $(foreach name,oss2 crcmod aliyun-python-sdk-core aliyun-python-sdk-kms pycryptodome jmespath,\
  --no-binary $(name) --no-emit-package $(name))

# pynvml, which SwanLab asks for, is a wrapper of nvidia-ml-py, which is here and is the same module.
locks:
	$(COMPILE) $(LINUX) pyproject.toml -o locks/cuda.txt
	$(COMPILE) $(LINUX) -c locks/cuda.txt $(addprefix --find-links ,$(LINKS)) pyproject.toml -o locks/cpu.txt
	MACOSX_DEPLOYMENT_TARGET=14.0 $(COMPILE) --python-platform aarch64-apple-darwin -c locks/cuda.txt pyproject.toml -o locks/macos.txt
	$(COMPILE) $(LINUX) -c locks/cpu.txt $(addprefix --find-links ,$(LINKS)) --no-emit-package torch --no-emit-package pynvml --group dev -o locks/dev.txt
	$(COMPILE) $(LINUX) -c locks/cuda.txt --no-emit-package pynvml --group trackers -o locks/trackers.txt
	$(COMPILE) $(LINUX) --group lmdeploy -o locks/lmdeploy.txt
	$(COMPILE) $(LINUX) --group llmcompressor -o locks/llmcompressor.txt
	$(COMPILE) $(LINUX) -c locks/llmcompressor.txt $(addprefix --find-links ,$(LINKS)) --group llmcompressor -o locks/llmcompressor-cpu.txt
	$(COMPILE) $(BUILT) $(LINUX) -c locks/cuda.txt --group lm-eval -o locks/lm-eval.txt
	$(COMPILE) $(BUILT) $(LINUX) -c locks/lm-eval.txt $(addprefix --find-links ,$(LINKS)) --group lm-eval -o locks/lm-eval-cpu.txt
	$(COMPILE) $(BUILT) $(LINUX) $(UPLOADS) --group evalscope -o locks/evalscope.txt
	$(COMPILE) $(LINUX_2_31) --group vllm -o locks/vllm.txt
	$(COMPILE) $(LINUX_2_34) --group sglang -o locks/sglang.txt
	$(COMPILE) --no-binary llama-cpp-python $(LINUX) --group llamacpp -o locks/llamacpp.txt
