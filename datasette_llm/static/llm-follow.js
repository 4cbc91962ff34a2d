// Keeps a part of a page up to date while calls begin and end, and lets the seconds of those that run
// go on. Without this script there is a link that loads the page again.
//
// An element with `data-follow`, the address of the events, is replaced by the one of the same id in
// the page as it is now; with `data-target` the section around the element of that id is. With
// `data-ids` it is only when one of these calls changes.

import { addLocalTimes } from "./llm-page.js";
import { addCopyButtons } from "./llm-copy.js";

// Between two loads, however many calls there are.
const PAUSE_MS = 2_000;

function part(root, id) {
  const found = root.getElementById(id);
  return found?.closest("section[aria-labelledby]") || found;
}

// The element that has the focus, as it is found in the new part.
function focused(old) {
  const active = document.activeElement;
  if (!active || !old.contains(active)) return null;
  const alike = active.tagName.toLowerCase();
  const name = active.getAttribute("href") === null ? "aria-label" : "href";
  const value = active.getAttribute(name);
  return (root) => [...root.querySelectorAll(alike)].find((each) => each.getAttribute(name) === value);
}

async function refresh(id) {
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!response.ok) throw new Error(`the server answered with status ${response.status}`);
  const fresh = part(new DOMParser().parseFromString(await response.text(), "text/html"), id);
  const old = part(document, id);
  if (!fresh || !old) return location.reload();
  const find = focused(old);
  const opened = [...old.querySelectorAll("details")].map((each) => each.open);
  const made = document.importNode(fresh, true);
  old.replaceWith(made);
  made.querySelectorAll("details").forEach((each, at) => { each.open ||= opened[at] || false; });
  addLocalTimes(made);
  addCopyButtons(made);
  tick(made);
  find?.(made)?.focus();
}

// The seconds since the page was made are added to those that it was made with.
function tick(root) {
  const loaded = performance.now();
  for (const element of root.querySelectorAll("[data-seconds]")) {
    const timer = setInterval(() => {
      if (!element.isConnected) return clearInterval(timer);
      const seconds = Number(element.dataset.seconds) + (performance.now() - loaded) / 1000;
      element.textContent = `${Math.floor(seconds)} s`;
    }, 1000);
  }
}

function follow(element) {
  const { follow: address, target } = element.dataset;
  const id = target || element.id;
  const ids = element.dataset.ids?.split(" ");
  let source = null, timer = null, loadedAt = -PAUSE_MS;

  const load = () => {
    timer ??= setTimeout(async () => {
      [timer, loadedAt] = [null, performance.now()];
      try {
        await refresh(id);
      } catch {
        return; // the next event tries again
      }
      if (!document.querySelector(`[data-follow="${CSS.escape(address)}"]`)) source.close();
    }, Math.max(0, loadedAt + PAUSE_MS - performance.now()));
  };
  const connect = () => {
    source = new EventSource(address);
    // What happened before the connection is not sent.
    source.onopen = load;
    source.onmessage = ({ data }) => {
      const { calls } = JSON.parse(data);
      if (!ids || !calls || calls.some((call) => ids.includes(call.id))) load();
    };
  };
  // A page that is not seen needs no connection.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else if (source?.readyState !== EventSource.OPEN) connect();
  });
  if (!document.hidden) connect();
}

tick(document);
document.querySelectorAll("[data-follow]").forEach(follow);
