// Tests the models of a purpose: shows the seconds and the first chunk while a model is tested, and
// each result when it is there. Without this script the form is posted, and the page shows all
// results at the end. The server renders the rows.

import { postForLines } from "./llm-lines.js";

const form = document.getElementById("llm-test");
const section = document.getElementById("llm-results");
const progress = document.getElementById("llm-progress");
const body = section.querySelector("tbody");
const button = form.querySelector("button[type=submit]");
const cancel = document.getElementById("llm-cancel");
const AT_ONCE = 4;

async function page(address, options) {
  const response = await fetch(address, { ...options, headers: { accept: "text/html" } });
  const text = await response.text();
  return new DOMParser().parseFromString(text, "text/html");
}

async function candidates(purpose, signal) {
  const query = new URLSearchParams({ purpose });
  const found = (await page(`${form.action}?${query}`, { signal })).getElementById("llm-candidates");
  if (!found) throw new Error("the list of models is missing");
  const models = [...found.querySelectorAll("[data-model]")].map((item) => item.dataset.model);
  found.querySelector("details")?.remove();
  document.getElementById("llm-candidates").replaceWith(document.importNode(found, true));
  return models;
}

function addRow(model) {
  const row = body.insertRow();
  row.setAttribute("role", "row");
  const head = document.createElement("th");
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  head.className = "llm-text";
  head.textContent = model;
  row.append(head);
  showStatus(row, "waiting");
  return row;
}

function showStatus(row, text) {
  if (row.cells.length > 1) row.deleteCell(1);
  const cell = row.insertCell();
  cell.setAttribute("role", "cell");
  cell.colSpan = 7;
  cell.textContent = text;
}

// The seconds go on beside what is known so far.
function startClock(row) {
  const started = performance.now();
  let known = "";
  const show = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    showStatus(row, `testing… ${seconds} s${known}`);
  };
  const timer = setInterval(show, 1000);
  show();
  return {
    firstChunk: (ms) => { known = `, first chunk after ${Math.round(ms).toLocaleString("en")} ms`; show(); },
    stop: () => clearInterval(timer),
  };
}

function rowOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.querySelector("tr");
}

async function test(model, purpose, row, signal) {
  const clock = startClock(row);
  let made = null;
  try {
    await postForLines(form.action, { model, purpose }, signal, (line) => {
      if (line.row) made = rowOf(line.row);
      else clock.firstChunk(line.first_chunk_ms);
    });
    if (!made) throw new Error("the connection ended too early");
    row.replaceWith(made);
  } catch (error) {
    showStatus(row, signal.aborted ? "Cancelled" : `The test could not be done: ${error.message}`);
  } finally {
    clock.stop();
  }
}

function showProgress(done, count) {
  const good = body.querySelectorAll("tr[data-ok]").length;
  progress.textContent = done < count
    ? `${done} of ${count} tested`
    : `${good} of ${count} answered`;
}

async function testAll(models, purpose, signal) {
  body.replaceChildren();
  const rows = models.map((model) => addRow(model));
  section.hidden = false;
  showProgress(0, models.length);
  let next = 0, done = 0;
  const work = async () => {
    while (next < models.length) {
      const index = next++;
      if (signal.aborted) showStatus(rows[index], "Not tested");
      else await test(models[index], purpose, rows[index], signal);
      showProgress(++done, models.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

let running = null; // the AbortController of what is tested

function setRunning(controller) {
  running = controller;
  button.disabled = Boolean(controller);
  cancel.hidden = !controller;
}

form.addEventListener("submit", async (event) => {
  const { model, purpose } = Object.fromEntries(new FormData(form));
  if (!model && !purpose) return; // the server reports what is missing
  event.preventDefault();
  const controller = new AbortController();
  setRunning(controller);
  document.querySelector("#llm-results-title small")?.remove();
  document.getElementById("llm-refused")?.remove();
  try {
    if (model) document.getElementById("llm-candidates").replaceChildren();
    const models = model ? [model] : await candidates(purpose, controller.signal);
    await testAll(models, purpose, controller.signal);
  } catch (error) {
    section.hidden = false;
    progress.textContent = `The test could not be done: ${error.message}`;
  } finally {
    const focused = document.activeElement === cancel;
    setRunning(null);
    if (focused) button.focus();
  }
});

cancel.addEventListener("click", () => running?.abort());
