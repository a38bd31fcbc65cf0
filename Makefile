# Everything a developer does with this repository; `make help` lists it.

PYTHON := .venv/bin/python
LAUNCHER := $(PYTHON) -m infra.local

.DEFAULT_GOAL := help
.PHONY: help bootstrap installed run stop status logs clean check test soak bench profile database-page format

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

bootstrap: ## Make the Python environment .venv; every target that needs it does so by itself
	@sh infra/local/bootstrap.sh

run: bootstrap ## Start servers and services, show how to sign in, keep running until Ctrl-C
	@exec $(LAUNCHER) up

stop: installed ## Stop what `make run` started, from any shell
	@exec $(LAUNCHER) stop

status: installed ## Show what runs; fails when nothing does; JSON=1 prints JSON
	@exec $(LAUNCHER) status $(if $(JSON),--json)

logs: installed ## Follow the logs of all parts, or of one: make logs SERVICE=kafka
	@exec $(LAUNCHER) logs $(SERVICE)

clean: installed ## Remove the data of `make run`; refuses while it runs
	@exec $(LAUNCHER) clean

check: bootstrap ## Format, lint, strict types, import boundaries, unit tests: no server is started
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy
	@{ .venv/bin/squawk --assume-in-transaction $$(grep -L '^-- no transaction' services/*/migrations/*.sql) && \
		.venv/bin/squawk $$(grep -l '^-- no transaction' services/*/migrations/*.sql); } \
		> .local/squawk.log 2>&1 || { cat .local/squawk.log; exit 1; }
	@.venv/bin/lint-imports --no-cache > .local/lint-imports.log || { cat .local/lint-imports.log; exit 1; }
	@$(PYTHON) -m pytest tests/unit

test: check ## Everything: check, then contract, integration, fault and end-to-end tests on real servers
	@$(PYTHON) -m pytest tests --ignore tests/unit --durations 30

soak: bootstrap ## An hour of faults: both full campaigns with their logs, then the kill test ten times over; SEED=2
	@$(PYTHON) -m tests.chaos.campaign --events 100000 --kills 200 --outage 300 --calm 300 --seed $(or $(SEED),1) \
		--log docs/reliability/campaign.log
	@$(PYTHON) -m tests.chaos.cache_campaign --faults 130 --seed $(or $(SEED),1) --log docs/reliability/cache-campaign.log
	@for plant in tag-check-off stamps-after-load late-bump; do \
		$(PYTHON) -m tests.chaos.cache_campaign --plant $$plant --faults 0 --seconds 10 --holds 0.3 || exit 1; done
	@$(PYTHON) -m tests.chaos.cache_campaign --plant parts-after-load --faults 0 --seconds 60 --holds 0.5
	@$(PYTHON) -m tests.chaos.cache_campaign --plant keep-l1 --faults 4 --only LINE_HOLE
	@KILL_ROUNDS=10 $(PYTHON) -m pytest tests/e2e/test_kill.py -v
	@DESCRIBED_SECONDS=900 DESCRIBED_SEED=$(or $(SEED),1) $(PYTHON) -m pytest tests/integration/gateway/test_described.py

bench: bootstrap ## Measure on the real stack and print one table (needs wrk); BENCH="create --repeats 3" chooses
	@$(PYTHON) -m tests.bench $(BENCH)

profile: bootstrap ## Show where the CPU of a request goes (needs wrk, and root to sample); PROFILE="hit miss" chooses
	@$(PYTHON) -m tests.bench.profiles $(PROFILE)

database-page: bootstrap ## Write docs/database.md: every plan, with a million tickets; takes minutes
	@$(PYTHON) -m tests.bench.database_page

format: bootstrap ## Format the code and mend what the linter can mend
	@$(PYTHON) -m ruff format --quiet .
	@$(PYTHON) -m ruff check --fix .

installed:
	@[ -x $(PYTHON) ] || { echo "Nothing has been started in this folder yet: make run" >&2; exit 1; }
