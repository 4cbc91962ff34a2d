// Sends a question without leaving the page: shows what is being done, what has come of the answer,
// and each claim as it is checked. Shows a new preview when the model or the columns change. Without
// this script the form is posted, and the response comes when the advice is complete.

import { addCopyButtons } from "./llm-copy.js";
import { postForLines } from "./llm-lines.js";

const form = document.getElementById("llm-analyze");
const [send, preview, cancel, progress, clock, live] = [
  "llm-send", "llm-preview", "llm-cancel", "llm-progress", "llm-clock", "llm-live",
].map((id) => document.getElementById(id));
// What depends on the model and the columns.
const PREVIEWED = ["llm-known", "llm-problem", "llm-excluded", "llm-size", "llm-measured"];
const VERDICTS = {
  confirmed: "Confirmed",
  contradicted: "Contradicted",
  counted: "Counted",
  opinion: "Opinion",
  not_checkable: "Not checkable",
};

let running = null; // the AbortController of what was sent
let refreshing = null; // and that of the preview that is being made

// The progress

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// A sentence of ours, whose names of columns and tables are between backticks.
function sentence(text) {
  const made = element("p", "llm-text", "");
  const parts = text.split("`");
  if (parts.length % 2 === 0) parts.splice(0, parts.length, text); // a name has a backtick
  made.append(...parts.map((part, at) => (at % 2 ? element("code", "llm-text", part) : part)));
  return made;
}

function addClaim({ index, claim }) {
  const item = document.createElement("li");
  item.className = "llm-risk";
  item.dataset.index = index;
  const line = document.createElement("p");
  line.className = "llm-text";
  const where = claim.column === null ? "" : ` in ${claim.column}`;
  line.append(
    element("strong", "llm-status", "Checking…"),
    ` ${claim.kind.replaceAll("_", " ")}${where}: ${claim.claim}`,
  );
  item.append(line);
  live.hidden = false;
  live.append(item);
}

function showVerdict({ index, check }) {
  const item = live.querySelector(`[data-index="${index}"]`);
  if (!item) return;
  item.querySelector(".llm-status").textContent = VERDICTS[check.status] || check.status;
  item.classList.add(`llm-verdict-${check.status}`);
  for (const text of [check.sentence, check.reason]) {
    if (text) item.append(sentence(text));
  }
  item.dataset.checked = "";
  const done = live.querySelectorAll("[data-checked]").length;
  progress.textContent = `${done} of ${live.children.length} claims checked`;
}

// Seconds and tokens change often, so that they are beside what is read aloud.
function startClock() {
  const started = performance.now();
  let tokens = 0;
  const show = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    clock.textContent = `${seconds} s` + (tokens ? `, about ${tokens.toLocaleString("en")} tokens` : "");
  };
  const timer = setInterval(show, 1000);
  show();
  return {
    grown: (count) => { tokens = count; show(); },
    stop: () => { clearInterval(timer); clock.textContent = ""; },
  };
}

function showEvent(event, ticking) {
  if (event.step) progress.textContent = `${event.step}…`;
  else if (event.tokens !== undefined) ticking.grown(event.tokens);
  else if (event.claim) addClaim(event);
  else if (event.check) showVerdict(event);
}

async function follow(signal, ticking) {
  let last = {};
  await postForLines(form.action, new FormData(form), signal, (event) => {
    last = event;
    showEvent(event, ticking);
  });
  if (last.changed) return showChanged(last.changed);
  if (!last.next) throw new Error(last.error || "the connection ended too early");
  location.assign(last.next);
}

// Instead of what was not sent; the form keeps what was typed.
async function showChanged(notice) {
  setRunning(null);
  await refresh();
  progress.textContent = notice;
}

function setRunning(controller) {
  running = controller;
  cancel.hidden = !controller;
  send.disabled = preview.disabled = Boolean(controller);
}

async function ask() {
  const controller = new AbortController();
  setRunning(controller);
  live.replaceChildren();
  live.hidden = true;
  progress.textContent = "Sending…";
  progress.scrollIntoView({ block: "nearest" });
  const ticking = startClock();
  try {
    await follow(controller.signal, ticking);
  } catch (error) {
    const cancelled = controller.signal.aborted;
    progress.textContent = cancelled
      ? "Cancelled. What had come of it is stored under Advice."
      : `No advice: ${error.message}`;
    const hadFocus = document.activeElement === cancel;
    setRunning(null);
    if (hadFocus) send.focus();
  } finally {
    ticking.stop();
  }
}

form?.addEventListener("submit", (event) => {
  if (event.submitter === preview) return;
  event.preventDefault();
  if (!running && !refreshing) ask();
});

cancel?.addEventListener("click", () => running?.abort());

// A page from the browser's back-forward cache has a preview that may be gone.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// The preview

function replaceParts(page) {
  for (const id of PREVIEWED) {
    const [old, found] = [document, page].map((each) => each.getElementById(id));
    if (!old || !found) throw new Error("the page has changed; reload it");
    const made = document.importNode(found, true);
    old.replaceWith(made);
    addCopyButtons(made);
  }
  form.elements.digest.value = page.querySelector('[name="digest"]').value;
  send.disabled = page.getElementById("llm-send").disabled;
}

async function refresh() {
  refreshing?.abort();
  const controller = refreshing = new AbortController();
  send.disabled = true;
  progress.textContent = "Updating what would be sent…";
  const fields = new URLSearchParams(new FormData(form));
  for (const name of ["digest", "question"]) fields.delete(name);
  try {
    const response = await fetch(`${form.action}?${fields}`, { signal: controller.signal });
    if (!response.ok) throw new Error(`the server answered with status ${response.status}`);
    replaceParts(new DOMParser().parseFromString(await response.text(), "text/html"));
    progress.textContent = "This is what would be sent now.";
  } catch (error) {
    if (controller.signal.aborted) return; // by a later change
    progress.textContent = `The preview could not be updated: ${error.message}`;
  }
  refreshing = null;
}

form?.addEventListener("change", (event) => {
  if (event.target.name !== "question" && !running) refresh();
});

// What was chosen before this script was loaded, or by a browser that restores a form.
function isChanged(field) {
  if (field.type === "checkbox") return field.checked !== field.defaultChecked;
  if (field.tagName !== "SELECT") return false;
  const shown = [...field.options].findIndex((option) => option.defaultSelected);
  return field.selectedIndex !== Math.max(0, shown);
}

if (form && [...form.elements].some(isChanged)) refresh();
