# The targets are explained by `make help`.

GO       := .ci/go
TEST     := .ci/test
BIN      := bin
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS  := -s -w $(if $(VERSION),-X main.release=$(VERSION))

# Pinned, built from source by the module proxy, and kept between clones.
LINT_VERSION := v2.15.0
TOOLS        := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/devvm-tools
LINT         := $(TOOLS)/golangci-lint-$(LINT_VERSION)

# Tests that run inside another one, in a process of their own.
INSIDE := (InNamespace|InSandbox)$$

# Root installs for all users, a user for himself.
PREFIX := $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)

.PHONY: help build install lint check test vmtest kills fills clients attack fuzz hostile bench demo picture clean

help:
	@echo 'make demo      install what is missing, build devvm, run examples/hello in a VM'
	@echo 'make test      everything: lint, unit, script and VM tests'
	@echo 'make check     unit and script tests: no VM, some minutes'
	@echo 'make vmtest    the VM tests; VMTEST_RUN=REGEXP picks some'
	@echo 'make kills     a real VM whose processes are killed and stopped, DEVVM_TEST_ROUNDS (200) times'
	@echo 'make fills     a real VM on a disk of the host that fills at every verb; as root'
	@echo 'make clients   Docker clients as they are, on docker.sock and on the engine'"'"'s own socket; CLIENTS_RUN=REGEXP picks some'
	@echo 'make attack    what a neighbour, another user and a container can try, with its control'
	@echo 'make fuzz      every fuzz target for FUZZTIME (20s); FUZZ_RUN=REGEXP picks some'
	@echo 'make hostile   the host'"'"'s processes under a hostile guest for DEVVM_TEST_TIME (10m)'
	@echo 'make bench     the tables of docs/performance.md; VMTEST_RUN=REGEXP picks some'
	@echo 'make build     $(BIN)/devvm, one static binary'
	@echo 'make install   install it in $(PREFIX)/bin, with its man pages'
	@echo 'make picture   README'"'"'s picture, from docs/picture/session.cast'
	@echo 'make lint      golangci-lint $(LINT_VERSION)'
	@echo 'make clean     remove $(BIN)/'

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/devvm ./cmd/devvm

install: build
	install -D -m 755 $(BIN)/devvm $(DESTDIR)$(PREFIX)/bin/devvm
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 docs/man/*.1

lint: $(LINT)
	PATH="$(CURDIR)/.ci:$$PATH" $(LINT) run --allow-parallel-runners ./...
	cd docs/picture && PATH="$(CURDIR)/.ci:$$PATH" $(LINT) run --allow-parallel-runners ./...

$(LINT):
	@echo 'building golangci-lint $(LINT_VERSION), once: some minutes'
	@mkdir -p $(TOOLS)
	CGO_ENABLED=0 GOBIN=$(TOOLS)/build $(GO) install -trimpath github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(TOOLS)/build/golangci-lint $@

# The scripts in cmd start hundreds of processes, which the race detector makes five times
# as slow; what those run is raced by the packages' own tests. They wait more than they compute.
check:
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=50 $(TEST) -race -short -p 4 -skip '$(INSIDE)' ./pkg/...
	CGO_ENABLED=0 $(TEST) -short -parallel 8 -timeout 30m ./cmd/... ./examples/... ./images/...
	CGO_ENABLED=0 $(TEST) -run '^TestHostileGuest$$' ./pkg/supervisor ./pkg/usernet # the race detector takes memory
	$(GO) -C docs/picture test .

test:
	.ci/host-setup test
	$(MAKE) lint
	$(MAKE) check
	$(MAKE) vmtest

vmtest:
	.ci/vmtest

# Killed and stopped at random moments of all verbs: hours under emulation.
kills: export DEVVM_TEST_ROUNDS ?= 200
kills: export DEVVM_TEST_TIMEOUT ?= 24h
kills: export VMTEST_RUN ?= ^TestVMKills$$
kills:
	.ci/vmtest

# A disk of the host's that fills at every verb: an hour under emulation, and root to mount it.
fills: export DEVVM_TEST_SMALL ?= 6G
fills: export DEVVM_TEST_TIMEOUT ?= 24h
fills: export VMTEST_RUN ?= ^TestVMFills$$
fills:
	.ci/vmtest

clients:
	.ci/clients

attack:
	.ci/attack

fuzz:
	.ci/fuzz

# What the network process and the supervisor hold at most, while a guest does its worst.
hostile: export DEVVM_TEST_TIME ?= 10m
hostile:
	CGO_ENABLED=0 $(GO) test -count 1 -v -timeout 0 -run '^TestHostileGuest$$' ./pkg/...

bench:
	.ci/vmtest bench

demo:
	examples/hello/demo

picture:
	$(GO) -C docs/picture run .

clean:
	rm -rf $(BIN)
