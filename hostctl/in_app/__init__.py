"""Code that runs in the application's own interpreter, the release's .venv.

Entry scripts, started by path: celery_runner (worker and beat), inspector (questions of a deployment), flower_runner.

    compat            every private name of Celery, kombu and billiard, and the versions they were tested with
    worker, consumer  the worker: its setup; what it adds to Celery's consumer
    requeue           return unacknowledged messages of dead workers to their queues
    returns           count how often a message ended a process
    reception         what is wrong with a message that cannot be run
    parking           keep messages that no worker runs: list, requeue, delete them
    results           record the start and the outcome of tasks while the result backend is away
    watchdog          tell systemd that a worker is not frozen
    broker            detect a lost broker within seconds
    beat              beat, with signals deferred while it works
    schedule          beat's scheduler, and what it stores; overdue: periodic tasks that were due and not sent
    queues            the queues that the application publishes to; queue_calls: those that calls in the code name
    smoke_test        the task that a deployment sends through every queue
    questions         the answers of the inspector
    administrator     which command creates the first administrator
    overlay           which settings a project hard-codes; the module that takes them from the environment, with
                      environment; settings_probe: which settings follow the environment
    migrations        pending and unknown migrations; migration_review: which of them lock, rewrite or break

Nothing here imports Celery or Django at its top level: gevent must patch first, and the inspector starts without them.
"""
