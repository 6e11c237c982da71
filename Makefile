# Every target sets up what it needs: `make demo` and `make test` work from a bare checkout.
PYTHON ?= python3
VENV ?= .venv
# Another build of torch, for example one for CUDA: make demo TORCH='torch==2.11.0'
TORCH ?= torch==2.13.0
MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export MAX_JOBS

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
RUN = $(VENV)/bin/python
NATIVE = setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/cpu/* csrc/cuda/*)
PYTHONS = fastadv kernels benchmarks tests docs setup.py

.PHONY: help demo test check format docs bench gpu-check gpu-pretrain clean

help:
	@echo "make demo       finetune on the sample corpus with and without the adversary"
	@echo "make test       build everything and run the tests"
	@echo "make check      ruff, clang-format, mypy"
	@echo "make format     apply ruff and clang-format"
	@echo "make docs       the API reference, into docs/api"
	@echo "make bench      benchmarks of every operation, and of the whole step"
	@echo "make gpu-check  tests and benchmarks on an NVIDIA machine with torch already there"
	@echo "make gpu-pretrain PRETRAINING=DIR  one piece of a prepared pretraining run, there too"
	@echo "make clean      remove the virtual environment and everything built"

# torch is pinned before anything else is installed: a looser range would fetch another build of
# it, and the extension must be compiled against the torch that will load it.
$(VENV)/torch.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q '$(TORCH)' 'setuptools>=77' wheel 'ninja>=1.11' 'pybind11>=2.13'
	@touch $@

$(VENV)/native.stamp: $(VENV)/torch.stamp pyproject.toml $(NATIVE)
	$(PIP) install -q --no-build-isolation -e '.[demo]'
	@touch $@

# The extras by themselves: installing the package again would compile it again.
$(VENV)/develop.stamp: $(VENV)/native.stamp
	$(RUN) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*(line for name in "test triton lint docs hub tune tensorboard wandb trackio".split() for line in extras[name]), sep="\n")' > $(VENV)/develop.txt
	$(PIP) install -q --use-pep517 -r $(VENV)/develop.txt
	@touch $@

demo: $(VENV)/native.stamp
	$(RUN) -m fastadv demo --output runs/demo --overwrite true

test: $(VENV)/develop.stamp
	$(RUN) -m pytest tests

check: $(VENV)/develop.stamp
	$(RUN) -m ruff check $(PYTHONS)
	$(RUN) -m ruff format --check $(PYTHONS)
	$(VENV)/bin/clang-format --dry-run --Werror $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')
	$(RUN) -m mypy

format: $(VENV)/develop.stamp
	$(RUN) -m ruff check --fix $(PYTHONS)
	$(RUN) -m ruff format $(PYTHONS)
	$(VENV)/bin/clang-format -i $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

docs: $(VENV)/develop.stamp
	$(RUN) docs/api.py docs/api

bench: $(VENV)/develop.stamp
	$(RUN) -m pytest benchmarks/ops --benchmark-only --benchmark-group-by=group
	$(RUN) benchmarks/step_time.py

# Uses the python3 on the path, which must have torch with CUDA, transformers, triton and pytest;
# nothing is downloaded.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

# One piece of the run that `fastadv pretrain --prepare_only --output $(PRETRAINING)` prepared, with
# the python3 on the path, as above. Status 3, time over, is no failure: the same target goes on.
PRETRAINING ?= runs/pretrain
PIECE ?= 500
gpu-pretrain:
	$(PYTHON) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(PYTHON) -m fastadv.pretraining $(PRETRAINING) --seconds $(PIECE) || test $$? -eq 3

clean:
	rm -rf $(VENV) build *.egg-info fastadv/*.so
