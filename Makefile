# `make` lists the targets. Needed first: make and Python 3.11, nothing else.

PYTHON ?= python3
# Where it is set, every run of Ansible and of the tests compiles the plugins again.
unexport PYTHONDONTWRITEBYTECODE
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
	@echo "To work with it, type:"
	@echo "    . .venv/bin/activate"
	@echo "    ansible-playbook -i inventory/demo.yml site.yml    # deploy app_src/ again"
	@echo "    ssh -F .demo/ssh_config demo                       # log in"
	@echo "    make demo-destroy                                  # remove it"

.PHONY: demo-destroy
demo-destroy: ## Remove the demo: its server, SSH configuration, inventory and secrets
	@$(PYTHON) tools/demo.py destroy

# Answers for `make init`; it asks for those that are missing. They go through the environment, so no shell reads them.
# Variables of the calling shell do not count: NAME and ENV may stand for something else there.
given = $(if $(filter command line,$(origin $(1))),$($(1)))
environment := $(or $(call given,ENV),production)
init: export INIT_PROJECT := $(call given,PROJECT)
init: export INIT_ENV := $(environment)
init: export INIT_DOMAIN := $(call given,DOMAIN)
init: export INIT_SERVER := $(call given,SERVER)
init: export INIT_NAME := $(call given,NAME)
init: export INIT_REF := $(call given,REF)
init: export INIT_SETTINGS := $(call given,SETTINGS)
init: export INIT_WSGI := $(call given,WSGI)
init: export INIT_CELERY := $(call given,CELERY)

.PHONY: init
init: .venv ## Inspect your project, write inventory/ENV.yml and group_vars/ENV/app.yml; PROJECT=folder-or-git-url, ENV=production
	@.venv/bin/python tools/init.py

.PHONY: inspect
inspect: .inventory .venv ## What was found in the project, and what it needs; ENV=production
	@ANSIBLE_DISPLAY_OK_HOSTS=false ansible-playbook -i $(INVENTORY) playbooks/inspect.yml

INVENTORY ?= inventory/$(or $(call given,ENV),demo).yml
inspect: INVENTORY = inventory/$(environment).yml

# Before anything runs: is there an inventory of that name?
inventories = $(filter-out %.example,$(patsubst inventory/%.yml,%,$(wildcard inventory/*.yml)))
.PHONY: .inventory
.inventory:
	@test -e "$(INVENTORY)" || test "$(origin INVENTORY)" != file || { \
		echo "There is no $(INVENTORY); there are: $(or $(inventories),none)." \
			"Type ENV=NAME with one of them, or: make init PROJECT=folder-or-git-url ENV=NAME" >&2; exit 2; }

.PHONY: releases
releases: .inventory .venv ## Who deployed what, when, and the outcome; ENV=production
	@ansible-playbook -i $(INVENTORY) playbooks/releases.yml

.PHONY: doctor
doctor: .inventory .venv ## Is every host well, and what to type where one is not; ENV=production
	@$(if $(call given,ENV)$(call given,INVENTORY),,echo "Asks the hosts of $(INVENTORY). Others: make doctor ENV=production";) \
		.venv/bin/python tools/doctor.py -i $(INVENTORY)

.PHONY: logs
logs: .inventory .venv ## Logs of every host in the order of time; ENV=production, PROCESS=worker-heavy, LINES=100, FOLLOW=1
	@.venv/bin/python tools/logs.py -i $(INVENTORY) -n $(or $(call given,LINES),100) $(if $(call given,FOLLOW),-f) $(call given,PROCESS)

.PHONY: check
check: .venv ## Lint and unit tests, for every commit (about two minutes on two cores)
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
	@test ! -L .venv || { echo ".venv is a link to $$(readlink .venv), which installing would empty: type \`rm .venv\`, then \`make .venv\`." >&2; exit 1; }
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
