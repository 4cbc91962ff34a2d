// Sends a prompt to each model in a request of its own, and shows the answers as they come. To cancel
// one ends its request, which the server takes on to the provider. Without this script the form is
// posted, and the page shows all answers at the end. The server renders what is left of each.

const form = document.getElementById("llm-playground");
const [section, progress, cancelAll, estimateButton, calls] = [
  "llm-answers", "llm-progress", "llm-cancel", "llm-estimate-button", "llm-calls",
].map((id) => document.getElementById(id));
const answers = section.querySelector(".llm-play-answers");
const send = form.querySelector('button[type="submit"]');
const ESTIMATE_AFTER_MS = 400;

let running = new Set(); // an AbortController for each answer that is to come

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// Where the button that had the focus is gone.
function focusOn(card) {
  card.tabIndex = -1;
  card.focus();
}

// An answer that is to come: what has come of it, its seconds, and a button to cancel it.
function addCard(model, controller) {
  const card = element("article", "llm-card llm-play");
  const state = element("p", "llm-figures");
  const clock = element("span", "llm-clock", "0.0 s");
  const cancel = element("button", "llm-quiet", "Cancel");
  const text = element("div", "llm-message llm-text");
  cancel.type = "button";
  cancel.setAttribute("aria-label", `Cancel ${model}`);
  cancel.addEventListener("click", () => controller.abort());
  state.append(clock, " ", cancel);
  card.append(element("h3", "llm-text", model), state, text);
  answers.append(card);
  const started = performance.now();
  const seconds = () => `${((performance.now() - started) / 1000).toFixed(1)} s`;
  const timer = setInterval(() => { clock.textContent = seconds(); }, 100);
  return {
    add: (more) => { text.textContent += more; },
    end: (problem) => {
      clearInterval(timer);
      const hadFocus = document.activeElement === cancel;
      cancel.remove();
      clock.textContent = `${problem} after ${seconds()}`;
      if (hadFocus) focusOn(card);
    },
    replace: (html) => {
      clearInterval(timer);
      const page = new DOMParser().parseFromString(html, "text/html");
      const made = document.importNode(page.querySelector("article"), true);
      const hadFocus = document.activeElement === cancel;
      card.replaceWith(made);
      if (hadFocus) focusOn(made);
    },
  };
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function ask(model, fields) {
  const controller = new AbortController();
  running.add(controller);
  const card = addCard(model, controller);
  fields.set("model", model);
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: fields,
      headers: { accept: "application/x-ndjson" },
      signal: controller.signal,
    });
    const isLines = (response.headers.get("content-type") || "").includes("ndjson");
    if (!isLines) throw new Error(`the server answered with status ${response.status}`);
    let html;
    for await (const line of lines(response)) {
      if (line.error) throw new Error(line.error);
      if (line.text) card.add(line.text);
      html = line.html;
    }
    if (!html) throw new Error("the connection ended too early");
    card.replace(html);
  } catch (error) {
    card.end(controller.signal.aborted ? "Cancelled" : `No answer: ${error.message}, `);
  } finally {
    running.delete(controller);
  }
}

// Ties the requests together in the call log, as the server does for a page.
function newRun() {
  const numbers = crypto.getRandomValues(new Uint8Array(6));
  return [...numbers].map((each) => each.toString(16).padStart(2, "0")).join("");
}

async function sendAll(models) {
  const run = newRun();
  form.elements.run.value = run;
  if (calls) {
    const address = new URL(calls.href);
    address.searchParams.set("tag", `playground:${run}`);
    calls.href = address;
  }
  answers.replaceChildren();
  section.hidden = false;
  send.disabled = true;
  cancelAll.hidden = false;
  progress.textContent = `Asking ${models.length === 1 ? "one model" : `${models.length} models`}…`;
  section.scrollIntoView({ block: "nearest" });
  await Promise.all(models.map((model) => ask(model, new URLSearchParams(new FormData(form)))));
  const hadFocus = document.activeElement === cancelAll;
  send.disabled = false;
  cancelAll.hidden = true;
  if (hadFocus) send.focus();
  progress.textContent = `${answers.querySelectorAll("[data-ok]").length} of ${models.length} answered`;
}

form.addEventListener("submit", (event) => {
  if (event.submitter === estimateButton) return;
  const models = new FormData(form).getAll("model").map((each) => each.trim()).filter(Boolean);
  if (!models.length) return; // the server reports what is missing
  event.preventDefault();
  document.getElementById("llm-refused")?.remove();
  if (!running.size) sendAll(models);
});

cancelAll.addEventListener("click", () => {
  for (const controller of running) controller.abort();
});

// The estimate and the address to share, kept up to date

let estimating = null;
let timer = null;

async function estimate() {
  estimating?.abort();
  const controller = estimating = new AbortController();
  const fields = new URLSearchParams(new FormData(form));
  fields.set("estimate", "1");
  try {
    const response = await fetch(form.action, {
      method: "POST", body: fields, headers: { accept: "text/html" }, signal: controller.signal,
    });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.getElementById("llm-estimate");
    if (found) document.getElementById("llm-estimate").replaceWith(document.importNode(found, true));
  } catch (error) {
    if (!controller.signal.aborted) progress.textContent = `No estimate: ${error.message}`;
  }
}

form.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(estimate, ESTIMATE_AFTER_MS);
});
