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

.PHONY: all setup test-setup programs assets demo test check unit vm-test e2e fuzz lint format clean bench-restore bench-launch bench-footprint bench-api bench-edge torture soak

all: setup programs assets

setup:
	@scripts/setup

test-setup:
	@scripts/setup tests

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

test: test-setup all
	@tests/run

# What needs neither the machine nor the assets.
check: test-setup programs
	@tests/run lint unit fuzz vm api

unit: test-setup
	@tests/run unit

vm-test: test-setup all
	@tests/run vm

e2e: test-setup all
	@tests/run e2e

fuzz: test-setup
	@tests/run fuzz

lint: test-setup
	@tests/run lint

bench-restore: programs
	@bench/run restore

bench-launch: all
	@bench/run launch

bench-footprint: all
	@bench/run footprint

bench-edge: test-setup programs
	@bench/run edge

bench-api: test-setup programs
	@bench/run api

# Kills and power cuts at random moments under load, for TORTURE_SECONDS (600) each, natively and in the machine. TORTURE_SEED repeats a run.
torture: test-setup all
	@tests/torture/run

# Traffic of all protocols to SOAK_MICROVMS (30) for SOAK_SECONDS (600), with sleeps, suspends and kills.
soak: test-setup all
	@tests/soak/run

clean:
	rm -rf $(BUILD) build-*
