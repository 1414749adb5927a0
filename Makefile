# A small front for CMake: each target is one line that a person would otherwise have to remember.
# Variables: PRESET (release), PREFIX and DESTDIR (install, uninstall), CMAKE_ARGS (configure),
# FUZZ_SECONDS (a fuzz target), TESTS (what pytest gets), SKIP_DEPS=1 (install no packages).
PRESET ?= release
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 10
TESTS ?= tests/e2e

build := build/$(PRESET)
export SKIP_DEPS
# The bundles that the demo and the tests use; a folder of your own instead: REWARM_CRIU=DIR, REWARM_LLAMA=DIR.
export REWARM_CRIU
export REWARM_LLAMA
criu := $(abspath $(or $(REWARM_CRIU),build/criu))
llama := $(abspath $(or $(REWARM_LLAMA),build/llama))

.DEFAULT_GOAL := all
.PHONY: all
all: $(build)/build.ninja ## build (release unless PRESET says otherwise)
	@cmake --build $(build)

configure = cmake --preset $(PRESET) --log-level=NOTICE $(CMAKE_ARGS) $(1) > /dev/null
$(build)/build.ninja: CMakePresets.json
	@tools/install-deps build
	@$(call configure)

.PHONY: demo
demo: tools-demo ## freeze and restore a real LLM server, and compare with its cold start
	@$(call configure)
	@cmake --build $(build)
	@REWARM_CRIU=$(criu) $(build)/rewarm-demo --rewarm $(build)/rewarm --llama $(llama) --work build/demo

.PHONY: check
check: tools-demo build-tests ## every test that needs neither GPU nor Kubernetes
	@status=0; $(ctest) || status=$$?; \
	REWARM=$(CURDIR)/$(build)/rewarm REWARM_CRIU=$(criu) REWARM_LLAMA=$(llama) \
		build/venv/bin/pytest -rs $(TESTS) || status=$$?; \
	exit $$status

.PHONY: criu llama
criu: ## the CRIU bundle, build/criu
	@tools/install-deps demo
	@tools/make-criu-bundle

llama: ## the real server and model for demo and tests, build/llama
	@tools/install-deps demo
	@tools/make-venv
	@tools/fetch-model

# What the demo, the benchmark and the end-to-end tests use beside the command.
.PHONY: tools-demo
tools-demo: criu llama

.PHONY: check-unit
check-unit: build-tests ## unit tests and fuzz corpus only
	@$(ctest)

# ThreadSanitizer of older compilers does not know this kernel's address space layout.
ctest = $(if $(filter tsan,$(PRESET)),setarch -R) ctest --preset $(PRESET)
.PHONY: build-tests
build-tests:
	@tools/install-deps test
	@$(call configure,-DREWARM_TESTS=ON)
	@cmake --build $(build)

.PHONY: check-asan check-ubsan check-tsan check-debug
check-asan check-ubsan check-tsan check-debug: check-%: ## unit tests and fuzz corpus with that preset
	@$(MAKE) --no-print-directory check-unit PRESET=$*

.PHONY: coverage
coverage: ## unit tests with gcov; prints the share of lines that ran, a source file
	@$(MAKE) --no-print-directory check-unit PRESET=coverage
	@tools/coverage build/coverage

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_SECONDS, starting from its corpus
	@tools/install-deps ci
	@$(MAKE) --no-print-directory all PRESET=fuzz
	@tools/fuzz build/fuzz $(FUZZ_SECONDS)

.PHONY: bench
bench: tools-demo ## the bars: ours against plain CRIU, measured in the same run
	@$(call configure)
	@cmake --build $(build)
	@REWARM_CRIU=$(criu) $(build)/rewarm bench
	@REWARM_CRIU=$(criu) $(build)/rewarm-demo --bar --rewarm $(build)/rewarm --llama $(llama) --work build/demo

.PHONY: format
format: ## put every C file in the house's format
	@tools/make-venv
	@git ls-files -z '*.c' '*.h' | xargs -0 build/venv/bin/clang-format -i

.PHONY: lint
lint: all ## formats, layers, documentation against the command
	@tools/make-venv
	@tools/check-format
	@tools/check-layers --self-test
	@tools/check-layers
	@tools/check-docs $(build)/rewarm

.PHONY: install
install: all ## install below DESTDIR/PREFIX: command, man pages, completions, CRIU bundle
	@cmake --install $(build) --prefix $(PREFIX) --strip

.PHONY: uninstall
uninstall: all ## remove what install has put there
	@tools/uninstall $(build) $(PREFIX)

.PHONY: clean
clean: ## remove the builds; bundles, the Python environment and measurements stay
	@rm -rf $(addprefix build/,release debug asan ubsan tsan coverage fuzz ci-clang ci demo)

.PHONY: distclean
distclean: ## remove build/
	@rm -rf build

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z][a-z -]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-44s %s\n", $$1, $$2 }'
