# make demo: the whole pipeline on synthetic faces. make test: style and tests. Each installs its requirements once.
PYTHON ?= python3
VENV := .venv
# faiss-cpu and faiss-gpu provide the same module: install only one.
SEARCH := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
RUN := $(VENV)/.installed-$(SEARCH)
DEV := $(VENV)/.installed-$(SEARCH)-dev

.PHONY: demo test docs fuzz gpu-check test-milvus test-insightface
demo: $(RUN)
	$(VENV)/bin/facelt demo

test: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pytest -n auto --dist loadfile

# The reference of all configuration keys, from the schemas; the notebook, from the results of a demo that has finished.
docs: $(DEV)
	$(VENV)/bin/python -m tests.config.reference_page
	test ! -e runs/demo/known_people/report.json || $(VENV)/bin/python -m tests.notebook

# An hour of hostile input to every reader of files; `make test` runs a few seconds of it.
fuzz: $(DEV)
	FACELT_FUZZ_SECONDS=3600 $(VENV)/bin/pytest -q -p no:xdist tests/fuzz

# Numerical agreement and speed on one GPU in at most 8 minutes, written to docs/gpu.md.
gpu-check: $(RUN)
	$(VENV)/bin/python -m benchmarks.gpu_check

# A separate environment: the search libraries of Milvus Lite conflict with faiss.
MILVUS := .venv-milvus
test-milvus: $(MILVUS)/.installed
	$(MILVUS)/bin/pytest -q -p no:xdist tests/gallery/test_milvus.py

$(MILVUS)/.installed: pyproject.toml
	$(call create,$(MILVUS))
	$(MILVUS)/bin/python -m pip install --editable '.[milvus]' milvus-lite pytest pytest-xdist
	touch $@

# A separate environment: insightface requires opencv-python, which provides the same module as opencv-python-headless. It
# loads files exported by the environment of `make test`; the tests of detectors and alignment run in it.
INSIGHTFACE := .venv-insightface
test-insightface: $(DEV) $(INSIGHTFACE)/.installed
	FACELT_INSIGHTFACE_PYTHON=$(CURDIR)/$(INSIGHTFACE)/bin/python $(VENV)/bin/pytest -q -p no:xdist tests/export/test_insightface.py
	$(INSIGHTFACE)/bin/pytest -q -p no:xdist -k insightface tests/alignment/test_detectors.py tests/alignment/test_template.py

$(INSIGHTFACE)/.installed: pyproject.toml
	$(call create,$(INSIGHTFACE))
	$(INSIGHTFACE)/bin/python -m pip install --editable '.[insightface]' pytest pytest-xdist hypothesis
	touch $@

$(RUN): pyproject.toml
	$(call create,$(VENV))
	$(VENV)/bin/python -m pip install --editable '.[train,audit,$(SEARCH)]'
	touch $@

$(DEV): $(RUN)
	$(call create,$(VENV))
	$(VENV)/bin/python -m pip install --editable '.[train,audit,$(SEARCH),dev]'
	touch $@

# An environment is used only if its Python is new enough and has pip, which a creation that was interrupted lacks. The
# program runs in any Python. Older ones are refused here, since their pip would try every version of every requirement.
USABLE := import sys, pip; sys.exit(sys.version_info < (3, 11))
NEW_ENOUGH := import sys; sys.version_info < (3, 11) and sys.exit("error: facelt needs Python 3.11 or newer; \
$(PYTHON) is Python %d.%d. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version_info[:2])

# $(call create,ENVIRONMENT): the stamp of an installation is a rule's last step, so an interrupted one is continued.
define create
@$(1)/bin/python -c '$(USABLE)' 2>/dev/null || $(PYTHON) -c '$(NEW_ENOUGH)'
$(1)/bin/python -c '$(USABLE)' 2>/dev/null || $(PYTHON) -m venv --clear $(1)
endef
