// Keeps what a page shows of running tasks up to date, by asking for it as JSON until nothing more can come.
"use strict";

const SLOW_AFTER = 15_000; // milliseconds until the page says that it takes longer than usual
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const part = (root, name) => root.querySelector(`[data-part="${name}"]`);

/** Ask `url` and hand the answer to `show` until that returns true: soon at first, less and less often later. */
async function poll(url, { longest, show }) {
  for (let wait = 400; ; wait = Math.min(wait * 1.2, longest)) {
    try {
      const response = await fetch(url, { headers: { Accept: "application/json" } });
      if (response.ok && show(await response.json())) return;
    } catch {
      // The network or the site is away for a moment. What was shown still holds, so ask again.
    }
    await sleep(wait);
  }
}

/** Show a link once there is somewhere for it to go. */
function showLink(link, url) {
  link.hidden = !url;
  if (url) link.href = url;
}

function followOrder(root) {
  const section = root.parentElement;
  const started = Date.now();
  const show = ({ finished, steps }) => {
    for (const step of steps) {
      const item = root.querySelector(`[data-kind="${step.kind}"]`);
      item.dataset.state = step.state;
      part(item, "label").textContent = step.label;
      part(item, "detail").textContent = step.detail;
      showLink(part(item, "url"), step.url);
    }
    part(section, "finished").hidden = !finished;
    part(section, "slow").hidden = finished || Date.now() - started < SLOW_AFTER;
    return finished;
  };
  poll(root.dataset.url, { longest: 5000, show });
}

function followReport(root) {
  const bar = part(root, "progress");
  const label = part(root, "label");
  const show = ({ state, progress, result, error, release }) => {
    root.dataset.state = state;
    if (release) part(root, "release").textContent = `A worker of release ${release}`;
    if (state === "STARTED") label.textContent = "A worker has begun…";
    if (progress) {
      bar.max = progress.total;
      bar.value = progress.current;
      label.textContent = `Day ${progress.current} of ${progress.total}`;
    }
    if (state === "SUCCESS") {
      bar.value = bar.max;
      label.textContent = "The report is ready.";
      showLink(part(root, "url"), result);
    }
    if (state === "FAILURE") {
      label.textContent = "There is no report.";
      part(root, "error").textContent = `It could not be made: ${error}`;
      part(root, "error").hidden = false;
    }
    return state === "SUCCESS" || state === "FAILURE" || state === "REVOKED";
  };
  poll(root.dataset.url, { longest: 1000, show });
}

const followers = { order: followOrder, report: followReport };
for (const root of document.querySelectorAll("[data-live]")) followers[root.dataset.live](root);
