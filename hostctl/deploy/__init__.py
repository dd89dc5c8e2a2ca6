"""Deployments: a transaction that makes a release live, or leaves everything as it was.

steps       the list of steps: run, undo, barrier, final
deployment  take the steps; revert when one fails
recovery    complete or revert a deployment that was killed
context     what steps share
preflight, build, schema, launch, traffic, drain, summary
            the steps, one topic per module
barriers    several hosts wait for each other
health      requests to a release's own socket
record      the lock, the persisted state, the history
detach      run in a unit that outlives the SSH connection
control     start, follow and cancel deployments
"""
