# `make` lists what there is to do. Nothing needs to be installed first but make and Python 3.11.

PYTHON ?= python3
OS ?= debian13
PORT ?= 8443
HTTP_PORT ?= 8080
SSH_PORT ?= 2222
FIGURES ?=

# The certificates that this machine trusts, also behind a proxy that has its own.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt)
ifdef CERTIFICATES
export PIP_CERT ?= $(CERTIFICATES)
export SSL_CERT_FILE ?= $(CERTIFICATES)
endif

SHARED := molecule/shared
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-zA-Z.%-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: ## A throwaway server on this machine, provisioned; OS=debian12, PORT=8443, HTTP_PORT=8080, SSH_PORT=2222
	@$(PYTHON) $(SHARED)/machine.py venv engine
	@$(MAKE) --silent --no-print-directory --jobs 2 .venv image
	@$(PYTHON) $(SHARED)/demo.py create --os $(OS) --https-port $(PORT) --http-port $(HTTP_PORT) --ssh-port $(SSH_PORT)
	@ansible-playbook -i inventory/demo.yml site.yml
	@echo "To work with it: . .venv/bin/activate, then ansible-playbook -i inventory/demo.yml site.yml rolls out what is in app_src/;"
	@echo "ssh -F .demo/ssh_config demo logs in, and make demo-destroy removes it."

.PHONY: demo-destroy
demo-destroy: ## Remove the demo: its server, SSH configuration, inventory and secrets
	@$(PYTHON) $(SHARED)/demo.py destroy

INVENTORY ?= inventory/demo.yml

.PHONY: releases
releases: .venv ## What was rolled out, by whom, when, with which outcome; INVENTORY=inventory/production.yml
	@ansible-playbook -i $(INVENTORY) playbooks/releases.yml

.PHONY: test
test: .venv ## Everything that proves the project, with a table of what ran
	@$(PYTHON) tests/run.py

# test-lint, test-unit, test-app, or test- and the name of a folder of molecule/ with a molecule.yml.
test-%: .venv ## One part: lint, unit, app, or a scenario such as test-default
	@$(PYTHON) tests/run.py $*

.PHONY: bench
bench: .venv ## Measure what the README's figures say
	@PYTHONPATH=$(SHARED) $(PYTHON) bench/run.py $(FIGURES)

.PHONY: .venv
.venv: .venv/complete ## Ansible and the tests' tools, from requirements.txt

# Compiled here, since not every environment lets Python keep what it compiles, and Ansible starts a second or two sooner.
# The .pth file gives this clone's molecule a state of its own, however it is started.
.venv/complete: requirements.txt
	@$(PYTHON) $(SHARED)/machine.py venv
	@echo "Installing Ansible and the tests' tools into .venv (a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/pip install --quiet --quiet --disable-pip-version-check --no-compile --require-hashes --requirement requirements.txt
	@.venv/bin/python -m compileall -q -j 0 -x 'ansible_collections|/tests?/' .venv/lib
	@echo "import os; os.environ.setdefault('ANSIBLE_HOME', '$(CURDIR)/.ansible')" >"$$(echo .venv/lib/python3.*/site-packages)/seedbed.pth"
	@touch $@

.PHONY: image
image:
	@$(PYTHON) $(SHARED)/testhost.py image $(OS)

.PHONY: requirements
requirements: .venv ## Pin anew what requirements.in asks for
	@uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --custom-compile-command 'make requirements' \
	  --output-file requirements.txt requirements.in
