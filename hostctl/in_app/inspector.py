"""Answer questions that only the application's own interpreter can answer; see questions.py.

hostctl runs this with the release's Python. One process answers all questions of a deployment, so that the application
is loaded once. As JSON: a question per line on stdin ([name, argument, ...]), an answer per line on stdout
({"answer": ...} or {"error": traceback}).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    # See celery_runner.py.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(Path.cwd()), *(path for path in sys.path if path != str(here)), str(here.parents[1])]

from hostctl.in_app.questions import QUESTIONS


def set_up_django() -> None:
    """Load the application. A project with django-configurations needs its importer, as in its manage.py."""
    package = "configurations" if os.environ.get("DJANGO_CONFIGURATION") else "django"
    importlib.import_module(package).setup()


def main() -> None:
    """Answer until the end of the input. The application's own output goes to stderr, apart from the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        question, *arguments = json.loads(line)
        try:
            # The overlay's question is about settings that are not loaded yet. From the second time on it does nothing.
            if "DJANGO_SETTINGS_MODULE" in os.environ and question != "settings_overlay":
                set_up_django()
            answer = {"answer": QUESTIONS[question](*arguments)}
        except (Exception, SystemExit):  # Whatever the application raises, hostctl reports it.
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
