# make demo: the whole pipeline on synthetic faces. make test: style and tests. Each installs its requirements once.
PYTHON ?= python3
VENV := .venv
# faiss-cpu and faiss-gpu provide the same module: install only one.
SEARCH := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
RUN := $(VENV)/.installed-$(SEARCH)
DEV := $(VENV)/.installed-$(SEARCH)-dev

.PHONY: demo test docs fuzz test-milvus test-insightface
demo: $(RUN)
	$(VENV)/bin/facelt demo

test: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pytest -n auto --dist loadfile

# The reference of all configuration keys, from the schemas.
docs: $(DEV)
	$(VENV)/bin/python -m tests.config.reference_page

# An hour of hostile input to every reader of files; `make test` runs a few seconds of it.
fuzz: $(DEV)
	FACELT_FUZZ_SECONDS=3600 $(VENV)/bin/pytest -q -p no:xdist tests/fuzz

# A separate environment: the search libraries of Milvus Lite conflict with faiss.
MILVUS := .venv-milvus
test-milvus: $(MILVUS)/.installed
	$(MILVUS)/bin/pytest -q -p no:xdist tests/gallery/test_milvus.py

$(MILVUS)/.installed: pyproject.toml
	test -x $(MILVUS)/bin/python || $(PYTHON) -m venv $(MILVUS)
	$(MILVUS)/bin/python -m pip install --quiet --editable '.[milvus]' milvus-lite pytest pytest-xdist
	touch $@

# A separate environment: insightface requires opencv-python, which provides the same module as opencv-python-headless. It
# loads files exported by the environment of `make test`; the tests of detectors and alignment run in it.
INSIGHTFACE := .venv-insightface
test-insightface: $(DEV) $(INSIGHTFACE)/.installed
	FACELT_INSIGHTFACE_PYTHON=$(CURDIR)/$(INSIGHTFACE)/bin/python $(VENV)/bin/pytest -q -p no:xdist tests/export/test_insightface.py
	$(INSIGHTFACE)/bin/pytest -q -p no:xdist -k insightface tests/alignment/test_detectors.py tests/alignment/test_template.py

$(INSIGHTFACE)/.installed: pyproject.toml
	test -x $(INSIGHTFACE)/bin/python || $(PYTHON) -m venv $(INSIGHTFACE)
	$(INSIGHTFACE)/bin/python -m pip install --quiet --editable '.[insightface]' pytest pytest-xdist hypothesis
	touch $@

$(RUN): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[train,audit,$(SEARCH)]'
	touch $@

$(DEV): $(RUN)
	$(VENV)/bin/python -m pip install --quiet --editable '.[train,audit,$(SEARCH),dev]'
	touch $@
