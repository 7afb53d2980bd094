# A thin front to meson and the scripts: what a newcomer types. Everything that is made lies below build/.
#
#   make demo     from a fresh clone to two microVMs that sleep and wake
#   make test     all tests
#   make          build only

MAKEFLAGS += --no-print-directory
BUILD := build
STAGE := $(CURDIR)/$(BUILD)/stage
STASIS := $(STAGE)/bin/stasis
NINJA := ninja -C $(BUILD)

.PHONY: all setup programs assets demo test check unit vm-test e2e fuzz lint format clean bench-restore bench-launch bench-footprint bench-edge

all: setup programs assets

setup:
	@scripts/setup

$(BUILD)/build.ninja:
	@meson setup $(BUILD) --prefix $(STAGE) --libdir lib >$(BUILD)-setup.log 2>&1 || { cat $(BUILD)-setup.log; exit 1; }
	@rm -f $(BUILD)-setup.log

programs: setup $(BUILD)/build.ninja
	@$(NINJA) --quiet
	@meson install -C $(BUILD) --no-rebuild --quiet

assets: programs
	@assets/make $(STAGE)/lib/stasis/assets $(BUILD)

demo: all
	@scripts/demo $(STASIS)

test: all
	@tests/run

# What needs neither the machine nor the assets.
check: programs
	@tests/run lint unit fuzz vm api

unit: setup
	@tests/run unit

vm-test: all
	@tests/run vm

e2e: all
	@tests/run e2e

fuzz: setup
	@tests/run fuzz

lint: setup
	@tests/run lint

bench-restore: programs
	@bench/run restore

bench-launch: all
	@bench/run launch

bench-footprint: all
	@bench/run footprint

bench-edge: programs
	@bench/run edge

clean:
	rm -rf $(BUILD) build-*
