"""The program that operates one application on its host: APPctl. Standard library only; it runs under Debian's Python.

cli          commands and their options
status       what is deployed and what runs
logs         the logs of the application's processes
host         releases on this host, and the switch between them
application  run a release's own code: manage.py, celery, hooks, questions to its interpreter
database     dump and migrations
processes    the processes under systemd or Supervisor
deploy       deployments: the steps (deploy/steps.py), the transaction, the lock, the history
in_app       what runs in the application's own interpreter
upgrade      bring the files of an earlier version to today's names
settings     /etc/APP/hostctl.json, written by Ansible
"""

__version__ = "0.1.0"
