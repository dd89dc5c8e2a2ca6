# `make` lists the targets. Needed first: make and Python 3.11, nothing else.

PYTHON ?= python3
OS ?= debian13
PORT ?= 8443
HTTP_PORT ?= 8080
SSH_PORT ?= 2222
FIGURES ?=

# The authorities that this machine trusts, including those of a proxy.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt)
ifdef CERTIFICATES
export PIP_CERT ?= $(CERTIFICATES)
export SSL_CERT_FILE ?= $(CERTIFICATES)
endif

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible ignores an ansible.cfg in a world-writable folder, unless it is named.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-zA-Z.%-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: ## A throwaway server on this machine, provisioned; OS=debian12, PORT=8443, HTTP_PORT=8080, SSH_PORT=2222
	@$(PYTHON) tools/machine.py venv engine
	@$(MAKE) --silent --no-print-directory --jobs 2 .venv image
	@$(PYTHON) tools/demo.py create --os $(OS) --https-port $(PORT) --http-port $(HTTP_PORT) --ssh-port $(SSH_PORT)
	@ansible-playbook -i inventory/demo.yml site.yml
	@echo "To work with it: . .venv/bin/activate; ansible-playbook -i inventory/demo.yml site.yml deploys app_src/ again;"
	@echo "ssh -F .demo/ssh_config demo logs in; make demo-destroy removes it."

.PHONY: demo-destroy
demo-destroy: ## Remove the demo: its server, SSH configuration, inventory and secrets
	@$(PYTHON) tools/demo.py destroy

INVENTORY ?= inventory/demo.yml

.PHONY: releases
releases: .venv ## Who deployed what, when, and the outcome; INVENTORY=inventory/production.yml
	@ansible-playbook -i $(INVENTORY) playbooks/releases.yml

.PHONY: check
check: .venv ## Lint and unit tests, for every commit (about two and a half minutes)
	@$(PYTHON) tests/run.py lint unit

.PHONY: test
test: .venv ## All tests, and a table of the results
	@$(PYTHON) tests/run.py

# test-lint, test-unit, test-app ..., or test- and a scenario: a folder of molecule/ with a molecule.yml.
test-%: .venv ## One part: lint, unit, app, or a scenario such as test-default
	@$(PYTHON) tests/run.py $*

.PHONY: bench
bench: .venv ## Measure the figures of the documentation
	@PYTHONPATH=tools:tests/harness $(PYTHON) bench/run.py $(FIGURES)

.PHONY: docs
docs: .venv ## Write docs/settings.md from the defaults and the specs
	@.venv/bin/python tools/settings_docs.py

.PHONY: .venv
.venv: .venv/complete ## Ansible and the test tools, from requirements.txt

# Compiled here, since some environments keep Python from storing compiled files: Ansible starts a second or two sooner.
# The .pth file gives this clone's molecule its own state, however it is started.
.venv/complete: requirements.txt
	@$(PYTHON) tools/machine.py venv
	@echo "Installing Ansible and the test tools into .venv (a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/pip install --quiet --quiet --disable-pip-version-check --no-compile --require-hashes --requirement requirements.txt
	@.venv/bin/python -m compileall -q -j 0 -x 'ansible_collections|/tests?/' .venv/lib
	@echo "import os; os.environ.setdefault('ANSIBLE_HOME', '$(CURDIR)/.ansible')" >"$$(echo .venv/lib/python3.*/site-packages)/seedbed.pth"
	@touch $@

.PHONY: image
image:
	@$(PYTHON) tools/testhost.py image $(OS)

.PHONY: requirements
requirements: .venv ## Update the pins in requirements.txt to the newest versions that requirements.in allows
	@uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --custom-compile-command 'make requirements' \
	  --output-file requirements.txt requirements.in
