# XAI-CLIP: every target makes what it needs, the virtual environment included.
#
#   make demo                       explain a scan and say where the picture is
#   make test PYTHON=python3.12     another interpreter for the virtual environment
#   make demo VENV=/big/disk/venv   another place for it

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.xaiclip-installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench screenshots clean distclean

help:
	@echo "make demo       explain a scan end to end and say where the results are"
	@echo "make test       style, types and tests"
	@echo "make lint       style and types only"
	@echo "make bench      the measurements behind the numbers in the README"
	@echo "make screenshots  photograph the Slicer module for README and tutorial"
	@echo "make clean      remove caches, builds and results"
	@echo "make distclean  remove the virtual environment too"

demo: $(INSTALLED)
	@$(BIN)/xaiclip demo

# One thread for each of the workers, which already share the cores.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=15 -n auto --maxprocesses=4 --dist=loadfile

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

screenshots: $(INSTALLED)
	@$(BIN)/python -m Testing.screenshots

bench: $(INSTALLED)
	@$(BIN)/python Testing/benchmarks/run.py

# Again whenever the requirements change. torch goes in first, so that nothing that asks for it can bring another one.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "XAI-CLIP needs Python 3.10 or later, and there is no '$(PYTHON)' here: name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "XAI-CLIP needs Python 3.10 or later, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): name another with make PYTHON=/path/to/python3." >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV) (PyTorch and MONAI among others: some minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[networks]' \
	  || echo "No nnU-Net, SAM or deepbet here (nnunetv2, transformers, deepbet): their tests will be skipped."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --only-binary pyjpegls -e '.[dicom]' \
	  || echo "No DICOM objects here (highdicom): their tests will be skipped."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dicom-tools]' \
	  || echo "No dcmqi and dciodvfy here (dicom3tools): DICOM objects are not read and checked by others."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --only-binary slicer-core,vtk,PySide6-Essentials -e '.[host]' \
	  || echo "No stand-in for 3D Slicer here (slicer-core, PySide6): the tests of its module will be skipped."
	@touch $@

clean:
	rm -rf build dist results *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find XAICLIPLib Testing -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
