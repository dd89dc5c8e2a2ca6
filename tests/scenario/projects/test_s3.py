"""A project whose static files are on S3: nothing of them is on the host, and each release has its own manifest."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from probes import Visitor, wait_for
from user_projects import Project

# This machine, as test hosts reach it.
ADDRESS = "10.177.0.1"
BUCKET = "notes"


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer(ip_address=ADDRESS, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=30).close()
    yield address
    server.stop()


def color(visitor: Visitor, endpoint: str) -> str:
    """Return the color in the style sheet that the page names, from S3."""
    page = visitor.get("/page")
    assert page.status == 200, page.body
    (address,) = re.findall(rf'href="({endpoint}/{BUCKET}/static/notes/a\.[0-9a-f]{{12}}\.css)"', page.body)
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    (found,) = re.findall(r"color: (\w+);", text)
    return found


def restart(project: Project) -> None:
    project.host.check_output(f"systemctl restart {project.app.name}")
    wait_for(lambda: project.visitor().get("/page").status == 200, 60, "the site serves again")


def test_each_release_finds_its_own_files_on_s3(project: Project, endpoint: str) -> None:
    one, two = project.source("s3-one"), project.source("s3-one", "s3-two")
    # b.css is new in it, and its health page answers 500.
    broken = project.source("s3-one", "static-broken")
    environment = {
        "AWS_STORAGE_BUCKET_NAME": BUCKET,
        "AWS_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    run = project.site(one, app_environment=environment).succeeded()
    assert "Static files collected to the project's storage" in run.output
    assert "Settings from the environment: STORAGES" in run.output
    visitor, deployments = project.visitor(), project.deployments
    assert color(visitor, endpoint) == "green"

    deployments.deploy(two).succeeded()
    assert color(visitor, endpoint) == "blue"

    # The failed release has the style sheet of the first one.
    with deployments.settings(health_check_timeout=3):
        deployments.deploy(broken).failed()
    # Processes read the manifest when they start.
    restart(project)
    assert color(visitor, endpoint) == "blue"

    deployments.rollback().succeeded()
    assert color(visitor, endpoint) == "green"
    restart(project)
    assert color(visitor, endpoint) == "green"
