# skudonet-ce-cluster. The two commands to know are `make demo` and `make check`.

GO       ?= go
PROGRAMS  = skd-vrrpd skd-inotify skd-hooks skd-prompt
MODULE    = github.com/skudonet/skudonet-ce-cluster
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   = -s -w -X $(MODULE)/lib/version.Version=$(VERSION)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
SCRIPTS   = hooks/* test/install-deps test/fuzz .ci/run $(addprefix test/lab/stub/,skudonet init stubd)

.PHONY: build demo check lint test fuzz bench soak clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./,$(PROGRAMS))

# Two nodes, an election, failovers, replicated changes, with what a client saw.
# KEEP=1 leaves the lab.
demo:
	@test/install-deps demo
	@$(MAKE) --no-print-directory build
	@$(GO) run ./test/demo $(if $(KEEP),-keep)

check: lint test fuzz

lint:
	@test/install-deps check
	@test -z "$$(gofmt -l .)" || { gofmt -l . ; echo "gofmt would change these files"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	shellcheck $(SCRIPTS)
	mandoc -T lint -W warning man/*.[1-8]

test: build
	@test/install-deps check
	$(GO) test -race -count=1 -timeout 15m $$($(GO) list ./... | grep -v -e /test/e2e -e /test/replication)
	$(GO) test -race -count=1 -timeout 20m ./test/e2e
	$(GO) test -race -count=1 -timeout 20m ./test/replication

fuzz:
	test/fuzz 30000

# A table beside keepalived, ucarp and lsyncd, from this machine and this hour.
bench: build
	@test/install-deps bench
	$(GO) run ./test/bench

# What is too long for every change.
soak: build
	test/fuzz 2000000
	SOAK=1 $(GO) test -count=1 -timeout 6h ./...

clean:
	rm -rf bin
