# skudonet-ce-cluster. The two commands to know are `make demo` and `make check`.

GO       ?= go
PROGRAMS  = skd-vrrpd skd-inotify skd-hooks skd-prompt
MODULE    = github.com/skudonet/skudonet-ce-cluster
VERSION  ?= $(shell sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)
# The same programs in bin/ and in the package: no path, time, commit or C library of the building machine in them.
BUILD     = -trimpath -buildvcs=false -buildmode=pie -tags urfave_cli_no_docs
LDFLAGS   = -s -w -bindnow -X $(MODULE)/lib/version.Version=$(VERSION)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
SCRIPTS   = hooks/* test/install-deps test/fuzz test/run .ci/run $(addprefix debian/,carry find-go mkdeb mkrepo profile.sh) \
	$(wildcard debian/*.preinst.in debian/*.postinst debian/*.prerm debian/*.postrm) \
	$(addprefix test/lab/stub/,skudonet init stubd) \
	$(addprefix test/testbed/,testbed mkskudonet selftest stub/import-nics stub/DEBIAN/postinst) \
	$(addprefix test/package/v2/,mkv2 postinst postrm skudonet-ce-cluster-start skudonet-ce-cluster-stop skudonet-ce-cluster-advertisement)

.PHONY: build deb repo demo check lint test fuzz bench soak clean

build:
	CGO_ENABLED=0 $(GO) build $(BUILD) -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./,$(PROGRAMS))

# The Debian package, in dist/. ARCH=arm64 for the other architecture.
deb:
	@test/install-deps deb
	@debian/mkdeb $(ARCH)

# A signed apt repository of the packages in dist/, in dist/repo.
repo:
	@test/install-deps deb
	@debian/mkrepo

# Two nodes, an election, failovers, replicated changes, with what a client saw.
# KEEP=1 leaves the lab.
demo:
	@test/install-deps demo
	@$(MAKE) --no-print-directory build
	@$(GO) run ./test/demo $(if $(KEEP),-keep)

check: lint test fuzz

lint:
	@test/install-deps check
	@bad=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)) && test -z "$$bad" || { echo "gofmt would change: $$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	shellcheck $(SCRIPTS)
	perl -wc debian/skudonet-ce-cluster.init
	mandoc -T lint -W warning man/*.[1-8]

test: build
	@test/install-deps check
	@test/install-deps deb
	@test/install-deps package
	test/run -race -count=1 -timeout 15m $$($(GO) list ./... | grep -v -e /test/e2e -e /test/keepalived -e /test/neighbours -e /test/replication -e /test/history -e /test/package)
	$(GO) test -count=1 -timeout 20m ./test/history
	test/run -race -count=1 -timeout 20m ./test/e2e
	test/run -race -count=1 -timeout 20m ./test/neighbours
	test/run -race -count=1 -timeout 10m ./test/keepalived
	test/run -race -count=1 -timeout 20m ./test/replication
	test/run -v -count=1 -timeout 20m ./test/package

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
	rm -rf bin dist
